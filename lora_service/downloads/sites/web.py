"""Any other place on the web: the link is what is fetched."""

from __future__ import annotations

import re

from lora_service.downloads.parsed_url import ParsedUrl, redact
from lora_service.downloads.remote_file import AuthScope, RemoteFile

SITE = "web"


def parse(link: ParsedUrl) -> RemoteFile:
    """A plain link; ``#sha256=…`` at its end says what the file must hash to, and a token needs https."""
    known = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", link.fragment)
    return RemoteFile(
        SITE,
        link.url,
        redact(link.url),
        token=AuthScope.GIVEN if link.scheme == "https" else AuthScope.NONE,
        sha256=known.group(1).lower() if known else "",
    )
