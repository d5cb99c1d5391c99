"""Resolve what people paste to the file that is to be fetched. Nothing here asks the network."""

from __future__ import annotations

import json
import re
from pathlib import Path

from lora_service.downloads.parsed_url import ParsedUrl, redact
from lora_service.downloads.remote_file import RemoteFile
from lora_service.downloads.sites import civitai, hugging_face, replicate, site_registry
from lora_service.downloads.sites.direct_links import parse_data_uri
from lora_service.errors import LinkError

_ACCEPTED_LINKS = (
    "paste a link of Google Drive, Hugging Face, Civitai, Dropbox or GitHub, owner/name on Hugging Face, "
    "or any https:// link to the file itself"
)

MAX_LINK_LENGTH = 8192
"""The most characters of a link that is no data URI."""


def resolve(text: str, *, allow_local: bool = False) -> RemoteFile:
    """Return the file that a pasted link means.

    Args:
        text: a link, ``owner/name`` on Hugging Face, ``owner/name:version`` on Replicate, a data URI, or a path.
        allow_local: whether paths of this machine may be named (on the command line, never over the network).

    Raises:
        LinkError: it means no single file; the message says what to paste instead.
    """
    if re.search("[\ud800-\udfff]", text):
        raise LinkError("The link holds half a character (a lone surrogate); copy it again.", code="malformed_link")
    if len(text) > MAX_LINK_LENGTH and not is_data_uri(text):
        raise LinkError(
            f"The link {redact(text)!r} has {len(text)} characters, but at most {MAX_LINK_LENGTH} are read.",
            code="malformed_link",
        )
    text = _strip_wrapping(text)
    if not text:
        raise LinkError(f"The link is empty; {_ACCEPTED_LINKS}.", code="empty_link")
    if is_data_uri(text):
        return parse_data_uri(text)
    if allow_local and (local := _resolve_path(text)):
        return local
    text = _strip_trailing(text)
    if urn := civitai.parse_urn(text):
        return urn
    if trained := replicate.parse_name(text):
        return trained
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", text)
    if scheme and scheme.group(1).lower() in ("http", "https"):
        return site_registry.parse(_parse_link(text))
    if scheme and not re.match(r"[^/:]+\.[^/:]+:\d+(/|$)", text):
        raise LinkError(
            f"The link {redact(text)!r} begins with {scheme.group(1)}:, which is not fetched; {_ACCEPTED_LINKS}.",
            code="unsupported_scheme",
        )
    host = re.split(r"[/:]", text, maxsplit=1)[0].lower()
    if host in site_registry.PARSERS or ("." in host.strip(".") and "/" in text):
        return site_registry.parse(_parse_link(f"https://{text}"))
    repository = hugging_face.parse_name(text)
    if repository is None:
        raise LinkError(f"{redact(text)!r} is no link; {_ACCEPTED_LINKS}.", code="not_a_link")
    return repository


def is_data_uri(text: str) -> bool:
    """Return whether a link holds its file itself (RFC 2397)."""
    return text.lstrip()[:5].lower() == "data:"


def split(text: str) -> tuple[str, ...]:
    """Return the links of one input: a JSON list, or one per line, or split by ``|``; empty ones are left out.

    Raises:
        LinkError: it begins as a JSON list and is none of strings.
    """
    text = text.strip()
    if not text.startswith("["):
        return tuple(part.strip() for part in re.split(r"[|\n]", text) if part.strip())
    try:
        links = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LinkError(
            'The links begin with "[" but are no JSON list; put one link per line instead.', code="malformed_list"
        ) from error
    if not isinstance(links, list) or not all(isinstance(link, str) for link in links):
        raise LinkError(
            "The links are a JSON list of other things than strings; put one link per line instead.",
            code="malformed_list",
        )
    return tuple(link.strip() for link in links if link.strip())


def _resolve_path(text: str) -> RemoteFile | None:
    """Resolve a path of this machine: an existing file, or text that can be nothing but a path; else None."""
    try:
        path = Path(text).expanduser()
        is_file, is_folder = path.is_file(), path.is_dir()
    except (OSError, RuntimeError):  # longer than a path may be, or the home of an unknown user
        is_file = is_folder = False
    if is_file:
        return RemoteFile("local", str(path), str(path))
    if is_folder:
        raise LinkError(f"{text!r} is a folder; give a .safetensors file in it.", code="folder_link")
    if text.startswith(("/", "./", "../", "~")) or re.fullmatch(r"[^/:]+(/[^/:.]+)?\.safetensors", text):
        raise LinkError(f"There is no file {redact(text)!r}; check the path.", code="no_such_file")
    return None


def _parse_link(text: str) -> ParsedUrl:
    """Parse a link, or the one inside a redirect of Google's search and mail."""
    link = ParsedUrl.parse(text)
    inner = link.parameter("q") or link.parameter("url")
    if link.host in ("www.google.com", "google.com") and link.path == "/url" and inner.startswith("http"):
        return ParsedUrl.parse(inner)
    return link


def _strip_trailing(text: str) -> str:
    """Return a link without what a sentence or a list leaves at its end: commas, brackets, `` (a remark)``."""
    text = re.sub(r"(?<=\S)\s+\([^()]*\)?[\s.,;]*$", "", text)
    while text.endswith((",", ";")) or (text.endswith(")") and text.count(")") > text.count("(")):
        text = text[:-1].rstrip()
    return text


def _strip_wrapping(text: str) -> str:
    """Return the link without what mail programs, chats and editors put around it."""
    text = text.strip(" \t\r\n\ufeff\u200b\u00a0")
    markdown = re.fullmatch(r"!?\[[^\]]*\]\(\s*<?([^\s>]+)>?(?:\s+[\"'][^\"']*[\"'])?\s*\)[\s.,;]*", text)
    text = markdown.group(1) if markdown else text
    for opening, closing in ("<>", "()", '""', "''", "``", "“”"):
        if len(text) > 1 and text.startswith(opening) and text.endswith(closing):
            text = text[1:-1].strip()
    return text.replace("&amp;", "&")
