"""The token that goes with a request for a file, if any."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lora_service.downloads.parsed_url import ParsedUrl
from lora_service.downloads.remote_file import AuthScope, RemoteFile
from lora_service.errors import LinkError
from lora_service.settings import Settings


def check_one_host(remotes: Sequence[RemoteFile], api_token: str | None, settings: Settings) -> None:
    """Refuse a token that came with links of several hosts, because all of them would get it.

    Args:
        remotes: all files that one request names.
        api_token: the token that came with the request, or None.
        settings: the service's own tokens.

    Raises:
        LinkError: more than one host would be sent the token.
    """
    api_token = (api_token or "").strip()
    hosts = {
        ParsedUrl.parse(remote.url).host
        for remote in remotes
        if api_token and select_token(remote, api_token, settings) == api_token
    }
    if len(hosts) > 1:
        raise LinkError(
            f"The api_token would be sent to {' and '.join(sorted(hosts))}; give a token with links of one site only.",
            code="token_for_several_hosts",
            field="api_token",
        )


def select_token(remote: RemoteFile, api_token: str | None, settings: Settings) -> str:
    """Return the token to send to a file's own host, or ''.

    One that came with the request has precedence over one in the link, and that over the settings'. A Hugging Face
    token is recognised by its prefix, and goes nowhere else even when it came with another site's link.

    Args:
        remote: the file that is requested.
        api_token: the token that came with the request, or None.
        settings: the service's own tokens.

    Raises:
        LinkError: the token holds characters that none has.
    """
    if remote.auth_scope is AuthScope.NONE:
        return ""
    api_token = (api_token or "").strip()
    if api_token.startswith("hf_") and remote.auth_scope is not AuthScope.HUGGING_FACE:
        api_token = ""
    configured = {
        AuthScope.HUGGING_FACE: settings.hf_token.get_secret_value(),
        AuthScope.CIVITAI: settings.civitai_token.get_secret_value(),
    }
    token = api_token or remote.link_token or configured.get(remote.auth_scope, "").strip()
    if token and not re.fullmatch(r"[\x21-\x7e]+", token):
        raise LinkError(
            f"The token for {remote.link!r} holds spaces or letters that no token has; copy it again (it is not "
            "quoted here).",
            code="malformed_token",
            field="api_token" if api_token else "",
        )
    return token
