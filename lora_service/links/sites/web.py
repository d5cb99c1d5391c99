"""Any other place on the web: the link is what is fetched."""

from __future__ import annotations

import re

from lora_service.links.link import Link, shown
from lora_service.links.source import Source, Token

SITE = "web"


def parse(link: Link) -> Source:
    """A plain link; ``#sha256=…`` at its end says what the file must hash to, and a token needs https."""
    known = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", link.fragment)
    return Source(
        SITE,
        link.url,
        shown(link.url),
        token=Token.GIVEN if link.scheme == "https" else Token.NONE,
        sha256=known.group(1).lower() if known else "",
    )
