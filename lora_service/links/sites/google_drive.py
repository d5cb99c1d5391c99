"""Google Drive: share links in all their forms, and the pages that come instead of a file."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from urllib.parse import urlencode, urljoin

from lora_service.errors import LinkError
from lora_service.links.link import Link, shown, with_query
from lora_service.links.source import Advice, Source

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
_ADVICE = Advice(
    no_token=f"Google Drive wants a sign-in; {_SHARE}",
    bad_token=f"Google Drive wants a sign-in; {_SHARE}",
    missing="Google Drive has no such file; open the link in a private window to see whether it is shared",
    page=f"Google Drive sent a web page instead of the file; {_SHARE}",
)


def parse(link: Link) -> Source:
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
    return Source(SITE, url, shown(link.url), advice=_ADVICE)


def _file_id(link: Link) -> str:
    named = re.search(r"/d/([\w-]+)", link.path)
    given = link.parameter("id")
    if named:
        return named.group(1)
    return given if re.fullmatch(r"[\w-]+", given) else ""


def _refused(link: Link, why: str) -> LinkError:
    return LinkError(f"The link {shown(link.url)!r} {why}.")


def follow_page(page: str, url: str) -> str | None:
    """The address behind a page that asks to confirm a download that was not scanned for viruses.

    Args:
        page: the page's HTML.
        url: where it came from.

    Returns:
        The address, or None when the page offers no download.
    """
    form = _Form()
    form.feed(page)
    if form.action is not None:
        return urljoin(url, f"{form.action}{'&' if '?' in form.action else '?'}{urlencode(form.fields)}")
    older = re.search(r'href="(/uc\?export=download[^"]+)"', page)
    if older:
        return urljoin(url, html.unescape(older.group(1)))
    scripted = re.search(r'"downloadUrl":("(?:[^"\\]|\\.)*")', page)
    return str(json.loads(scripted.group(1))) if scripted else None


def reason(page: str) -> str:
    """Drive's own words on a page that refuses a download, or ''."""
    found = re.search(r'<p class="uc-error-subcaption"[^>]*>(.*?)</p>', page, re.DOTALL)
    if not found:
        return ""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", "", found.group(1))).split())[:400]


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
