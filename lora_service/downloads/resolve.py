"""What people paste -> what to fetch. Nothing here asks the network."""

from __future__ import annotations

import base64
import binascii
import json
import re
from pathlib import Path
from urllib.parse import unquote_to_bytes

from lora_service.downloads import sites
from lora_service.downloads.parsed_url import ParsedUrl, redact
from lora_service.downloads.remote_file import RemoteFile
from lora_service.downloads.sites import civitai, hugging_face
from lora_service.errors import LinkError

_WHAT_WORKS = (
    "paste a link of Google Drive, Hugging Face, Civitai, Dropbox or GitHub, owner/name on Hugging Face, "
    "or any https:// link to a .safetensors file"
)
_DATA = re.compile(r"data:[^,]*?(;base64)?,(.*)", re.DOTALL | re.IGNORECASE)


def resolve(text: str, *, allow_local: bool = False) -> RemoteFile:
    """Where the file is that a pasted link means.

    Args:
        text: a link, ``owner/name`` on Hugging Face, a data URI, or a path.
        allow_local: whether paths of this machine may be named (on the command line, never over the network).

    Raises:
        LinkError: it means no single file; the message says what to paste instead.
    """
    text = _unwrapped(text)
    if not text:
        raise LinkError(f"The link is empty; {_WHAT_WORKS}.")
    if text[:5].lower() == "data:":
        return _data(text)
    if allow_local and (local := _local(text)):
        return local
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", text)
    named = civitai.from_urn(text)
    if named:
        return named
    if scheme and scheme.group(1).lower() in ("http", "https"):
        return sites.parse(_link(text))
    if scheme and not re.match(r"[^/:]+\.[^/:]+:\d+(/|$)", text):
        raise LinkError(
            f"The link {redact(text)!r} begins with {scheme.group(1)}:, which is not fetched; {_WHAT_WORKS}."
        )
    host = re.split(r"[/:]", text, maxsplit=1)[0].lower()
    if host in sites.PARSERS or ("." in host.strip(".") and "/" in text):
        return sites.parse(_link(f"https://{text}"))
    source = hugging_face.from_name(text)
    if source is None:
        raise LinkError(f"{redact(text)!r} is no link; {_WHAT_WORKS}.")
    return source


def split(text: str) -> tuple[str, ...]:
    """The links of one input: a JSON list, or one per line, or split by ``|``; empty ones are left out.

    Raises:
        LinkError: it begins as a JSON list and is none of strings.
    """
    text = text.strip()
    if not text.startswith("["):
        return tuple(part.strip() for part in re.split(r"[|\n]", text) if part.strip())
    try:
        links = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LinkError('The links begin with "[" but are no JSON list; put one link per line instead.') from error
    if not isinstance(links, list) or not all(isinstance(link, str) for link in links):
        raise LinkError("The links are a JSON list of other things than strings; put one link per line instead.")
    return tuple(link.strip() for link in links if link.strip())


def data_bytes(source: RemoteFile) -> bytes:
    """What a data URI holds.

    Raises:
        LinkError: it is not valid base64, or no data URI.
    """
    found = _DATA.fullmatch(source.url)
    if not found:
        raise LinkError(f"The link {source.link!r} is no data URI; it must look like data:;base64,….")
    raw = unquote_to_bytes(found.group(2))
    if not found.group(1):
        return raw
    try:
        return base64.b64decode(re.sub(rb"\s+", b"", raw), validate=True)
    except binascii.Error as error:
        raise LinkError(f"The data URI {source.link!r} is not valid base64; make it again.") from error


def _data(text: str) -> RemoteFile:
    source = RemoteFile("data", text, redact(text))
    data_bytes(source)
    return source


def _local(text: str) -> RemoteFile | None:
    """A path, when a file is there or nothing but a path can be meant."""
    path = Path(text).expanduser()
    if path.is_file():
        return RemoteFile("local", str(path), str(path))
    if path.is_dir():
        raise LinkError(f"{text!r} is a folder; give a .safetensors file in it.")
    if text.startswith(("/", "./", "../", "~")) or re.fullmatch(r"[^/:]+(/[^/:.]+)?\.safetensors", text):
        raise LinkError(f"There is no file {text!r}; check the path.")
    return None


def _link(text: str) -> ParsedUrl:
    link = ParsedUrl.parse(text)
    wrapped = link.parameter("q") or link.parameter("url")
    if link.host in ("www.google.com", "google.com") and link.path == "/url" and wrapped.startswith("http"):
        return ParsedUrl.parse(wrapped)
    return link


def _unwrapped(text: str) -> str:
    """The link without what mail programs, chats and editors put around it."""
    text = text.strip(" \t\r\n\ufeff\u200b\u00a0")
    markdown = re.fullmatch(r"\[[^\]]*\]\((\S+)\)", text)
    text = markdown.group(1) if markdown else text
    for opening, closing in ("<>", '""', "''", "``", "“”"):
        if len(text) > 1 and text.startswith(opening) and text.endswith(closing):
            text = text[1:-1].strip()
    return text.replace("&amp;", "&")
