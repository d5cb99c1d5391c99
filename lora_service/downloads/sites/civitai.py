"""Civitai: models, versions, and download links. A model's number is not a version's."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from lora_service.downloads.parsed_url import ParsedUrl, with_query
from lora_service.downloads.remote_file import AuthScope, ErrorHints, Listing, RemoteFile, objects_of
from lora_service.errors import LinkError
from lora_service.lora.safetensors_header import shortened

SITE = "civitai"
HOSTS = tuple(f"{www}civitai.{domain}" for domain in ("com", "green", "red") for www in ("", "www."))

_API = "https://civitai.com/api"
_FILE_PARAMETERS = ("type", "format", "size", "fp", "fileId")
_LANGUAGE = re.compile(r"[a-z]{2}(-[A-Za-z]{2,4})?")
_MODEL_AT_VERSION = re.compile(r"([0-9]+)@([0-9]+)")
_BASE_MODELS: dict[str, tuple[str, ...]] = {
    "sd_v1": ("SD 1",),
    "sd_v2": ("SD 2",),
    "sdxl": ("SDXL", "Pony", "Illustrious", "NoobAI"),
}
"""Beginnings of ``baseModel`` by kohya's name of the base; the last three are fine-tuned XL models."""
_MODEL_LINK_HINT = "paste the link of a model, such as https://civitai.com/models/123"


def parse(link: ParsedUrl) -> RemoteFile:
    """Parse a link to a model, one version of it, or a download.

    Raises:
        LinkError: the link leads to pictures, people or lists.
    """
    token = link.parameter("token")
    version = link.parameter("modelVersionId")
    segments = link.segments
    if len(segments) > 1 and _LANGUAGE.fullmatch(segments[0]) and segments[1] in ("models", "model-versions"):
        segments = segments[1:]
    if len(segments) > 1 and segments[0] == "models" and (pair := _MODEL_AT_VERSION.fullmatch(segments[1])):
        segments, version = ("models", pair[1]), pair[2]
    match segments:
        case (
            ("api", "download", "models", number) | ("api", "v1", "model-versions", number) | ("model-versions", number)
        ) if number.isdecimal():
            query = {name: link.parameter(name) for name in _FILE_PARAMETERS}
            return _version(number, link.redacted, token, query)
        case ("models", number, *_) | ("api", "v1", "models", number) if number.isdecimal():
            if version.isdecimal():
                return _version(version, link.redacted, token, {"fileId": link.parameter("fileId")})
            return _model(number, link.redacted, token)
    raise link.refusal(f"is a page of Civitai and no model; {_MODEL_LINK_HINT}")


def parse_urn(text: str) -> RemoteFile | None:
    """Parse an AIR like ``urn:air:sd1:lora:civitai:MODEL@VERSION``; None when the text is none."""
    match = re.fullmatch(r"(?:urn:air:[\w-]+:[\w-]+:)?civitai:(\d+)(?:@(\d+))?", text, re.ASCII)
    if not match:
        return None
    model, version = match.groups()
    return _version(version, text, "", {}) if version else _model(model, text, "")


def select_file(remote: RemoteFile, listing: Any, base: str = "") -> RemoteFile:
    """Return the file of a model's newest version for a base.

    Args:
        remote: the model, resolved.
        listing: the model as the API describes it: ``type``, ``modelVersions`` with ``id``, ``baseModel``, dates and
            ``files``.
        base: the base's name as kohya has it, like ``sd_v1``; '' or an unknown one: the newest version of all.

    Raises:
        LinkError: it is a whole checkpoint, or has no version for the base (``no_version_for_base``), or none that
            holds a .safetensors file.
    """
    listing = listing if isinstance(listing, dict) else {}
    if listing.get("type") == "Checkpoint":
        raise LinkError(
            f"The Civitai model {remote.link!r} is a whole checkpoint; paste the link of a LoRA.",
            code="checkpoint_not_lora",
        )
    versions = [version for version in objects_of(listing.get("modelVersions")) if _safetensors_files(version)]
    if not versions:
        raise LinkError(
            f"The Civitai model {remote.link!r} holds no .safetensors file; {_MODEL_LINK_HINT}.", code="no_lora_file"
        )
    suitable = _for_base(versions, base)
    if not suitable:
        names = ", ".join(sorted({shortened(str(version.get("baseModel"))) for version in versions})[:10])
        raise LinkError(
            f"The Civitai model {remote.link!r} has versions for {names} and none for this base ({base}); "
            "paste the link of another model.",
            code="no_version_for_base",
        )
    newest = max(suitable, key=_date)
    latest = max(versions, key=_date)
    note = ""
    if latest is not newest:
        note = (
            f"The newest version of {remote.link} is for {shortened(str(latest.get('baseModel')))}; version "
            f"{shortened(str(newest.get('name') or newest.get('id')))} for {shortened(str(newest.get('baseModel')))} "
            "is used."
        )
    file = max(_safetensors_files(newest), key=lambda item: item.get("primary") is True)
    hashes = file.get("hashes")
    sha256 = str(hashes.get("SHA256", "")).lower() if isinstance(hashes, dict) else ""
    return replace(
        _version(str(newest.get("id")), remote.link, remote.link_token, {"type": "Model", "format": "SafeTensor"}),
        sha256=sha256 if re.fullmatch(r"[0-9a-f]{64}", sha256) else "",
        note=note,
    )


def _date(version: dict[str, Any]) -> str:
    return str(version.get("publishedAt") or version.get("createdAt") or "")


def _for_base(versions: list[dict[str, Any]], base: str) -> list[dict[str, Any]]:
    """Return the versions for a base; those that do not name theirs count, and all of them for an unknown base."""
    prefixes = next((names for known, names in _BASE_MODELS.items() if base.startswith(known)), None)
    if prefixes is None:
        return versions
    return [version for version in versions if str(version.get("baseModel") or prefixes[0]).startswith(prefixes)]


def _safetensors_files(version: dict[str, Any]) -> list[dict[str, Any]]:
    return [file for file in objects_of(version.get("files")) if str(file.get("name", "")).endswith(".safetensors")]


def _version(number: str, link: str, token: str, query: dict[str, str]) -> RemoteFile:
    return RemoteFile(
        SITE,
        with_query(f"{_API}/download/models/{number}", **query),
        link,
        auth_scope=AuthScope.CIVITAI,
        link_token=token,
        hints=_hints(
            f"Civitai has no version {number}; if that is the number of a model, paste "
            f"https://civitai.com/models/{number} instead"
        ),
    )


def _model(number: str, link: str, token: str) -> RemoteFile:
    return RemoteFile(
        SITE,
        f"{_API}/v1/models/{number}",
        link,
        auth_scope=AuthScope.CIVITAI,
        link_token=token,
        listing=Listing.CIVITAI,
        hints=_hints(f"Civitai has no model {number}; copy the link from the model's page"),
    )


def _hints(not_found: str) -> ErrorHints:
    return ErrorHints(
        sign_in_required="Civitai wants a sign-in for this file; make an API key in your Civitai account settings, "
        "and give it as api_token or CIVITAI_TOKEN",
        token_rejected="Civitai does not accept the token for this file; make a new API key, and check that your "
        "account may download it",
        not_found=not_found,
        web_page="Civitai sent a web page instead of the file; copy the link of the Download button",
    )
