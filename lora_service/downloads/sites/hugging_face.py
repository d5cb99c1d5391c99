"""Hugging Face: files, and repositories that hold one LoRA."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any
from urllib.parse import quote, unquote

from lora_service.downloads.parsed_url import ParsedUrl, redact, with_query
from lora_service.downloads.remote_file import AuthScope, ErrorHints, Listing, RemoteFile
from lora_service.errors import LinkError

SITE = "hugging-face"
HOST = "huggingface.co"
HOSTS = (HOST, "www.huggingface.co", "hf.co")

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_KINDS = ("datasets", "spaces")
_NO_OWNERS = {
    "api", "blog", "chat", "collections", "docs", "enterprise", "join", "learn", "login", "models", "new",
    "papers", "posts", "pricing", "search", "settings", "tasks",
    *_KINDS,
}  # fmt: skip
_LISTED = 10


def parse(link: ParsedUrl) -> RemoteFile:
    """A link to a file, a folder of a repository, or a repository.

    Raises:
        LinkError: the link leads to a page that holds no file.
    """
    steps = link.steps
    kind = steps[0] if steps and steps[0] in _KINDS else ""
    repository = steps[1:3] if kind else steps[:2]
    rest = steps[3:] if kind else steps[2:]
    if len(repository) < 2 or (not kind and repository[0] in _NO_OWNERS):
        raise _refused(link, "is a page of Hugging Face and no model; open a model, and paste its link")
    if len(rest) >= 3 and rest[0] in ("blob", "resolve", "raw"):
        return _file(link, "/".join((kind, *repository) if kind else repository), rest[1], "/".join(rest[2:]))
    if kind:
        raise _refused(link, f"is none of a file in Hugging Face {kind}; open Files, and paste the link of one file")
    if not rest or rest[0] == "tree":
        revision = rest[1] if len(rest) > 1 else "main"
        return _repository(link, "/".join(repository), revision, unquote("/".join(rest[2:])))
    raise _refused(link, "is a page about a model; paste the model's own link or the link of a file in it")


def from_name(name: str) -> RemoteFile | None:
    """The source that ``owner/name`` or ``owner/name/path/to/file.safetensors`` means, or None."""
    steps = name.split("/")
    if len(steps) < 2 or not all(_NAME.fullmatch(step) for step in steps):
        return None
    repository = "/".join(steps[:2])
    link = ParsedUrl.parse(f"https://{HOST}/{name}")
    if len(steps) == 2:
        is_repository = steps[0] not in _NO_OWNERS and not name.endswith(".safetensors")
        return _repository(link, repository, "main", "") if is_repository else None
    path = "/".join(steps[2:])
    return _file(link, repository, "main", path) if path.endswith(".safetensors") else None


def choose(source: RemoteFile, listing: Any) -> RemoteFile:
    """The one LoRA file of a repository.

    Args:
        source: what the repository's link resolved to.
        listing: the hub's description of it: ``siblings`` of ``rfilename``, and ``lfs.sha256`` where known.

    Raises:
        LinkError: it holds no .safetensors file, or several.
    """
    siblings = listing.get("siblings", []) if isinstance(listing, dict) else []
    files = {
        item["rfilename"]: item
        for item in siblings
        if isinstance(item, dict)
        and isinstance(item.get("rfilename"), str)
        and item["rfilename"].startswith(source.within)
        and item["rfilename"].endswith(".safetensors")
    }
    if not files:
        raise LinkError(f"The repository {source.link!r} holds no .safetensors file; paste a LoRA's link.")
    if len(files) > 1:
        names = sorted(files)
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        raise LinkError(
            f"The repository {source.link!r} holds {len(names)} .safetensors files, so paste the link of one of them: "
            f"{', '.join(names[:_LISTED])}{more}."
        )
    ((name, item),) = files.items()
    prefix, revision = source.url.partition("?")[0].rsplit("/revision/", 1)
    repository = prefix.rsplit("/api/models/", 1)[1]
    lfs = item.get("lfs")
    known = str(lfs.get("sha256", "")) if isinstance(lfs, dict) else ""
    return replace(
        source,
        url=_file_url(repository, revision, quote(name)),
        catalogue=Listing.NONE,
        within="",
        sha256=known if re.fullmatch(r"[0-9a-f]{64}", known) else "",
    )


def _file(link: ParsedUrl, repository: str, revision: str, path: str) -> RemoteFile:
    return RemoteFile(
        SITE,
        _file_url(repository, revision, path),
        redact(link.url),
        token=AuthScope.HUGGING_FACE,
        advice=_advice(repository),
    )


def _repository(link: ParsedUrl, repository: str, revision: str, within: str) -> RemoteFile:
    if not all(_NAME.fullmatch(step) for step in repository.split("/")):
        raise _refused(link, "names no repository of Hugging Face; it must look like owner/name")
    return RemoteFile(
        SITE,
        with_query(f"https://{HOST}/api/models/{repository}/revision/{_one_step(revision)}", blobs="true"),
        redact(link.url),
        token=AuthScope.HUGGING_FACE,
        catalogue=Listing.HUGGING_FACE,
        within=f"{within}/" if within else "",
        advice=_advice(repository),
    )


def _file_url(repository: str, revision: str, path: str) -> str:
    return f"https://{HOST}/{repository}/resolve/{_one_step(revision)}/{path}"


def _one_step(revision: str) -> str:
    return quote(unquote(revision), safe="")


def _advice(repository: str) -> ErrorHints:
    return ErrorHints(
        no_token=f"{repository} is private, gated or not there; check the name, or give a Hugging Face token as "
        "api_token or HF_TOKEN",
        bad_token=f"the Hugging Face token does not open it; check the token, and accept the conditions at "
        f"https://{HOST}/{repository}",
        missing=f"Hugging Face has no such file or revision in {repository}, or the token may not see it; copy the "
        "link from the repository's Files page",
        page="Hugging Face sent a web page instead of the file; copy the link from the repository's Files page",
    )


def _refused(link: ParsedUrl, why: str) -> LinkError:
    return LinkError(f"The link {redact(link.url)!r} {why}.")
