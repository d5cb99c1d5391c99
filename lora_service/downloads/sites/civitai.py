"""Civitai: models, versions, and download links. A model's number is not a version's."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from lora_service.downloads.parsed_url import ParsedUrl, redact, with_query
from lora_service.downloads.remote_file import AuthScope, ErrorHints, Listing, RemoteFile
from lora_service.errors import LinkError

SITE = "civitai"
HOSTS = ("civitai.com", "www.civitai.com", "civitai.green", "civitai.red")

_API = "https://civitai.com/api"
_FILE_CHOICES = ("type", "format", "size", "fp")
_WHICH = "paste the link of a model, such as https://civitai.com/models/123"


def parse(link: ParsedUrl) -> RemoteFile:
    """A link to a model, one version of it, or a download.

    Raises:
        LinkError: the link leads to pictures, people or lists.
    """
    token = link.parameter("token")
    version = link.parameter("modelVersionId")
    match link.steps:
        case (
            ("api", "download", "models", number)
            | ("api", "v1", "model-versions", number)
            | (
                "model-versions",
                number,
            )
        ) if number.isdecimal():
            choices = {name: link.parameter(name) for name in _FILE_CHOICES}
            return _version(number, redact(link.url), token, choices)
        case ("models", number, *_) | ("api", "v1", "models", number) if number.isdecimal():
            if version.isdecimal():
                return _version(version, redact(link.url), token, {})
            return _model(number, redact(link.url), token)
    raise LinkError(f"The link {redact(link.url)!r} is a page of Civitai and no model; {_WHICH}.")


def from_urn(text: str) -> RemoteFile | None:
    """The source that ``urn:air:sd1:lora:civitai:MODEL@VERSION`` means, or None."""
    found = re.fullmatch(r"(?:urn:air:[\w-]+:[\w-]+:)?civitai:(\d+)(?:@(\d+))?", text, re.ASCII)
    if not found:
        return None
    model, version = found.groups()
    return _version(version, text, "", {}) if version else _model(model, text, "")


def choose(source: RemoteFile, listing: Any) -> RemoteFile:
    """The newest version of a model.

    Args:
        source: what the model's link resolved to.
        listing: the model as the API describes it: ``type``, ``modelVersions`` with ``id``, dates and ``files``.

    Raises:
        LinkError: it is a whole checkpoint, or has no version that holds a .safetensors file.
    """
    listing = listing if isinstance(listing, dict) else {}
    if listing.get("type") == "Checkpoint":
        raise LinkError(f"The Civitai model {source.link!r} is a whole checkpoint; paste the link of a LoRA.")
    versions = [item for item in listing.get("modelVersions", []) if isinstance(item, dict) and _files(item)]
    if not versions:
        raise LinkError(f"The Civitai model {source.link!r} holds no .safetensors file; {_WHICH}.")
    newest = max(versions, key=lambda item: str(item.get("publishedAt") or item.get("createdAt") or ""))
    file = max(_files(newest), key=lambda item: item.get("primary") is True)
    hashes = file.get("hashes")
    known = str(hashes.get("SHA256", "")).lower() if isinstance(hashes, dict) else ""
    return replace(
        _version(str(newest.get("id")), source.link, source.link_token, {"type": "Model", "format": "SafeTensor"}),
        sha256=known if re.fullmatch(r"[0-9a-f]{64}", known) else "",
    )


def _files(version: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        item
        for item in version.get("files") or []
        if isinstance(item, dict) and str(item.get("name", "")).endswith(".safetensors")
    ]


def _version(number: str, link: str, token: str, choices: dict[str, str]) -> RemoteFile:
    return RemoteFile(
        SITE,
        with_query(f"{_API}/download/models/{number}", **choices),
        link,
        token=AuthScope.CIVITAI,
        link_token=token,
        advice=_advice(
            f"Civitai has no version {number}; if that is the number of a model, paste "
            f"https://civitai.com/models/{number} instead"
        ),
    )


def _model(number: str, link: str, token: str) -> RemoteFile:
    return RemoteFile(
        SITE,
        f"{_API}/v1/models/{number}",
        link,
        token=AuthScope.CIVITAI,
        link_token=token,
        catalogue=Listing.CIVITAI,
        advice=_advice(f"Civitai has no model {number}; copy the link from the model's page"),
    )


def _advice(missing: str) -> ErrorHints:
    return ErrorHints(
        no_token="Civitai wants a sign-in for this file; make an API key in your Civitai account settings, and give "
        "it as api_token or CIVITAI_TOKEN",
        bad_token="Civitai does not accept the token for this file; make a new API key, and check that your account "
        "may download it",
        missing=missing,
        page="Civitai sent a web page instead of the file; copy the link of the Download button",
    )
