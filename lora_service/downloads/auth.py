"""Which token goes with a source, if any."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lora_service.downloads.parsed_url import ParsedUrl
from lora_service.downloads.remote_file import AuthScope, RemoteFile
from lora_service.errors import LinkError
from lora_service.settings import Settings


def check_one_host(sources: Sequence[RemoteFile], given: str | None, settings: Settings) -> None:
    """Refuse a token that came with links of several hosts, because all of them would get it.

    Args:
        sources: all that one request names.
        given: the token that came with it, or None.
        settings: the service's own tokens.

    Raises:
        LinkError: more than one host would be sent the token.
    """
    given = (given or "").strip()
    hosts = {
        ParsedUrl.parse(source.url).host for source in sources if given and choose(source, given, settings) == given
    }
    if len(hosts) > 1:
        raise LinkError(
            f"The api_token would be sent to {' and '.join(sorted(hosts))}; give a token with links of one site only."
        )


def choose(source: RemoteFile, given: str | None, settings: Settings) -> str:
    """The token to send to a source's own host, or ''.

    One that came with the request wins over one in the link, and that over the settings'. A Hugging Face token
    is told by its first letters, and goes nowhere else even when it came with another site's link.

    Args:
        source: where the token would go.
        given: what came with the request, or None.
        settings: the service's own tokens.

    Raises:
        LinkError: the token holds characters that none has.
    """
    if source.token is AuthScope.NONE:
        return ""
    given = (given or "").strip()
    if given.startswith("hf_") and source.token is not AuthScope.HUGGING_FACE:
        given = ""
    own = {
        AuthScope.HUGGING_FACE: settings.hf_token.get_secret_value(),
        AuthScope.CIVITAI: settings.civitai_token.get_secret_value(),
    }
    token = given or source.link_token or own.get(source.token, "").strip()
    if token and not re.fullmatch(r"[\x21-\x7e]+", token):
        raise LinkError(
            f"The token for {source.link!r} holds spaces or letters that no token has; copy it again (it is not shown)."
        )
    return token
