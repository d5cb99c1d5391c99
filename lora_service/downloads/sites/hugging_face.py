"""Hugging Face: files, and repositories that hold one LoRA."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote, unquote

from lora_service.downloads.parsed_url import ParsedUrl, with_query
from lora_service.downloads.remote_file import AuthScope, ErrorHints, Listing, RemoteFile, objects_of
from lora_service.errors import LinkError

SITE = "hugging-face"
HOST = "huggingface.co"
HOSTS = (HOST, "www.huggingface.co", "hf.co")

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_KINDS = ("datasets", "spaces")
_RESERVED_NAMES = {
    "api", "blog", "chat", "collections", "docs", "enterprise", "join", "learn", "login", "models", "new",
    "papers", "posts", "pricing", "search", "settings", "tasks",
    *_KINDS,
}  # fmt: skip
_MAX_QUOTED_FILES = 10


def parse(link: ParsedUrl) -> RemoteFile:
    """Parse a link to a file, a folder of a repository, or a repository.

    Raises:
        LinkError: the link leads to a page that holds no file.
    """
    segments = link.segments
    kind = segments[0] if segments and segments[0] in _KINDS else ""
    repository = segments[1:3] if kind else segments[:2]
    rest = segments[3:] if kind else segments[2:]
    if len(repository) < 2 or (not kind and repository[0] in _RESERVED_NAMES):
        raise link.refusal("is a page of Hugging Face and no model; open a model, and paste its link")
    if len(rest) >= 3 and rest[0] in ("blob", "resolve", "raw"):
        revision, path = _split_revision(rest[1:])
        if path:
            return _file(link, "/".join((kind, *repository) if kind else repository), revision, "/".join(path))
    if kind:
        raise link.refusal(f"is none of a file in Hugging Face {kind}; open Files, and paste the link of one file")
    if not rest or rest[0] == "tree":
        revision, path = _split_revision(rest[1:] or ("main",))
        return _repository(link, "/".join(repository), revision, unquote("/".join(path)))
    raise link.refusal("is a page about a model; paste the model's own link or the link of a file in it")


def _split_revision(segments: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Return the revision that segments of a link begin with, ``refs/pr/1`` too, and the path behind it."""
    count = 3 if len(segments) > 2 and segments[0] == "refs" and segments[1] in ("pr", "convert", "heads") else 1
    return "/".join(segments[:count]), segments[count:]


def parse_name(name: str) -> RemoteFile | None:
    """Parse ``owner/name``, ``owner/name@revision`` or ``owner/name/path/to/file.safetensors``; None for other text."""
    name, at, revision = name.partition("@")
    if at and not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", revision, re.ASCII):
        return None
    segments = name.split("/")
    if len(segments) < 2 or not all(_NAME.fullmatch(segment) for segment in segments):
        return None
    repository = "/".join(segments[:2])
    link = ParsedUrl.parse(f"https://{HOST}/{name}")
    if len(segments) == 2:
        is_repository = segments[0] not in _RESERVED_NAMES and not name.endswith(".safetensors")
        return _repository(link, repository, revision or "main", "") if is_repository else None
    path = "/".join(segments[2:])
    if at:
        return None
    return _file(link, repository, "main", path) if path.endswith(".safetensors") else None


def select_file(remote: RemoteFile, listing: Any) -> RemoteFile:
    """Return the one LoRA file of a repository.

    Args:
        remote: the repository, resolved.
        listing: the hub's description of it: ``siblings`` of ``rfilename``, and ``lfs.sha256`` where known.

    Raises:
        LinkError: it holds no .safetensors file, or several.
    """
    siblings = objects_of(listing.get("siblings")) if isinstance(listing, dict) else []
    files = {
        item["rfilename"]: item
        for item in siblings
        if isinstance(item.get("rfilename"), str)
        and item["rfilename"].startswith(remote.subfolder)
        and item["rfilename"].endswith(".safetensors")
    }
    if not files:
        raise LinkError(
            f"The repository {remote.link!r} holds no .safetensors file; paste a LoRA's link.", code="no_lora_file"
        )
    if len(files) > 1:
        names = [name if name.isprintable() else repr(name) for name in sorted(files)]
        more = f" and {len(names) - _MAX_QUOTED_FILES} more" if len(names) > _MAX_QUOTED_FILES else ""
        raise LinkError(
            f"The repository {remote.link!r} holds {len(names)} .safetensors files, so paste the link of one of them: "
            f"{', '.join(names[:_MAX_QUOTED_FILES])}{more}.",
            code="several_lora_files",
        )
    ((name, item),) = files.items()
    prefix, revision = remote.url.partition("?")[0].rsplit("/revision/", 1)
    repository = prefix.rsplit("/api/models/", 1)[1]
    lfs = item.get("lfs")
    sha256 = str(lfs.get("sha256", "")) if isinstance(lfs, dict) else ""
    return replace(
        remote,
        url=_file_url(repository, revision, quote(name)),
        listing=Listing.NONE,
        subfolder="",
        sha256=sha256 if re.fullmatch(r"[0-9a-f]{64}", sha256) else "",
    )


def _file(link: ParsedUrl, repository: str, revision: str, path: str) -> RemoteFile:
    return RemoteFile(
        SITE,
        _file_url(repository, revision, path),
        link.redacted,
        auth_scope=AuthScope.HUGGING_FACE,
        hints=_hints(repository),
    )


def _repository(link: ParsedUrl, repository: str, revision: str, subfolder: str) -> RemoteFile:
    if not all(_NAME.fullmatch(segment) for segment in repository.split("/")):
        raise link.refusal("names no repository of Hugging Face; it must look like owner/name")
    return RemoteFile(
        SITE,
        with_query(f"https://{HOST}/api/models/{repository}/revision/{_as_one_segment(revision)}", blobs="true"),
        link.redacted,
        auth_scope=AuthScope.HUGGING_FACE,
        listing=Listing.HUGGING_FACE,
        subfolder=f"{subfolder}/" if subfolder else "",
        hints=_hints(repository),
    )


def _file_url(repository: str, revision: str, path: str) -> str:
    return f"https://{HOST}/{repository}/resolve/{_as_one_segment(revision)}/{path}"


def _as_one_segment(revision: str) -> str:
    return quote(unquote(revision), safe="")


def _hints(repository: str) -> ErrorHints:
    return ErrorHints(
        sign_in_required=f"{repository} is private, gated or not there; check the name, or give a Hugging Face token "
        "as api_token or HF_TOKEN",
        token_rejected=f"the Hugging Face token does not open it; check the token, and accept the conditions at "
        f"https://{HOST}/{repository}",
        not_found=f"Hugging Face has no such file or revision in {repository}, or the token may not see it; copy the "
        "link from the repository's Files page",
        web_page="Hugging Face sent a web page instead of the file; copy the link from the repository's Files page",
    )
