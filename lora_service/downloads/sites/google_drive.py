"""Google Drive: share links in all their forms, and the pages that come instead of a file."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from urllib.parse import urlencode

from lora_service.downloads.parsed_url import ParsedUrl, joined, redact, with_query
from lora_service.downloads.remote_file import ErrorHints, RemoteFile
from lora_service.errors import LinkError

SITE = "google-drive"
HOSTS = ("drive.google.com", "docs.google.com", "drive.usercontent.google.com")
DOWNLOAD = "https://drive.usercontent.google.com/download"

_DOCUMENTS = {
    "document": "Doc",
    "spreadsheets": "Sheet",
    "presentation": "Slides",
    "forms": "Form",
    "drawings": "Drawing",
}
_SHARE = "in Google Drive choose Share, General access, “Anyone with the link”"
_ADVICE = ErrorHints(
    no_token=f"Google Drive wants a sign-in; {_SHARE}",
    bad_token=f"Google Drive wants a sign-in; {_SHARE}",
    missing="Google Drive has no such file; open the link in a private window to see whether it is shared",
    page=f"Google Drive sent a web page instead of the file; {_SHARE}",
)


def parse(link: ParsedUrl) -> RemoteFile:
    """A link to one file; folders and Google's own documents are refused.

    Raises:
        LinkError: the link leads to no single file.
    """
    steps = link.steps
    if "folders" in steps or "folderview" in steps or "embeddedfolderview" in steps:
        raise _refused(link, "is a folder in Google Drive; open it, and paste the link of one file in it")
    for step in steps:
        if step in _DOCUMENTS:
            raise _refused(link, f"is a Google {_DOCUMENTS[step]}; paste the link of a .safetensors file")
    file_id = _file_id(link)
    if not file_id:
        raise _refused(link, "names no file in Google Drive; use Share, Copy link, on the file itself")
    url = with_query(DOWNLOAD, id=file_id, export="download", confirm="t", resourcekey=link.parameter("resourcekey"))
    return RemoteFile(SITE, url, redact(link.url), advice=_ADVICE)


def _file_id(link: ParsedUrl) -> str:
    named = re.search(r"/d/([\w-]+)", link.path)
    given = link.parameter("id")
    if named:
        return named.group(1)
    return given if re.fullmatch(r"[\w-]+", given) else ""


def _refused(link: ParsedUrl, why: str) -> LinkError:
    return LinkError(f"The link {redact(link.url)!r} {why}.")


def follow_page(page: str, url: str) -> str | None:
    """The address behind a page that asks to confirm a download that was not scanned for viruses.

    Args:
        page: the page's HTML.
        url: where it came from.

    Returns:
        The address, or None when the page is none of Google's, or offers no download.

    Raises:
        LinkError: the address is malformed.
    """
    if not ParsedUrl.parse(url).host.endswith(".google.com"):
        return None
    form = _Form()
    form.feed(page)
    if form.action is not None:
        return joined(url, f"{form.action}{'&' if '?' in form.action else '?'}{urlencode(form.fields)}")
    older = re.search(r'href="(/uc\?export=download[^"]{1,2000})"', page)
    if older:
        return joined(url, html.unescape(older.group(1)))
    scripted = re.search(r'"downloadUrl":"([^"]{1,2000})"', page)
    return joined(url, _unescaped(scripted.group(1))) if scripted else None


def reason(page: str) -> str:
    """Drive's own words on a page that refuses a download, or ''."""
    _, found, rest = page.partition('<p class="uc-error-subcaption"')
    if not found:
        return ""
    inner = rest[:2000].partition(">")[2].partition("</p>")[0]
    return " ".join(html.unescape(re.sub(r"<[^>]*>", "", inner)).split())[:400]


def _unescaped(text: str) -> str:
    """A JavaScript string's content, whose escapes are those of JSON."""
    return re.sub(r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found.group(1), 16)), text).replace("\\/", "/")


class _Form(HTMLParser):
    """The action and hidden inputs of ``<form id="download-form">``."""

    def __init__(self) -> None:
        super().__init__()
        self.action: str | None = None
        self.fields: dict[str, str] = {}
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form" and given.get("id") == "download-form":
            self.action, self._inside = given.get("action", ""), True
        elif tag == "input" and self._inside and given.get("type") == "hidden":
            self.fields[given.get("name", "")] = given.get("value", "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._inside = False
