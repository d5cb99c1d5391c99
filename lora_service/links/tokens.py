"""Which token goes with a source, if any."""

from __future__ import annotations

import re

from lora_service.errors import LinkError
from lora_service.links.source import Source, Token
from lora_service.settings import Settings


def choose(source: Source, given: str | None, settings: Settings) -> str:
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
    if source.token is Token.NONE:
        return ""
    given = (given or "").strip()
    if given.startswith("hf_") and source.token is not Token.HUGGING_FACE:
        given = ""
    own = {
        Token.HUGGING_FACE: settings.hf_token.get_secret_value(),
        Token.CIVITAI: settings.civitai_token.get_secret_value(),
    }
    token = given or source.link_token or own.get(source.token, "").strip()
    if token and not re.fullmatch(r"[\x21-\x7e]+", token):
        raise LinkError(
            f"The token for {source.link!r} holds spaces or letters that no token has; copy it again (it is not shown)."
        )
    return token
