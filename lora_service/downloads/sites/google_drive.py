"""Google Drive: share links in all their forms, and the pages that come instead of a file."""

from __future__ import annotations

import contextlib
import html
import re
from html.parser import HTMLParser
from urllib.parse import urlencode

from lora_service.downloads.parsed_url import ParsedUrl, join_url, with_query
from lora_service.downloads.remote_file import ErrorHints, RemoteFile

SITE = "google-drive"
HOSTS = ("drive.google.com", "docs.google.com", "drive.usercontent.google.com")
_DOWNLOAD_URL = "https://drive.usercontent.google.com/download"

_DOCUMENTS = {
    "document": "Doc",
    "spreadsheets": "Sheet",
    "presentation": "Slides",
    "forms": "Form",
    "drawings": "Drawing",
}
_HOW_TO_SHARE = "in Google Drive choose Share, General access, “Anyone with the link”"
_HINTS = ErrorHints(
    sign_in_required=f"Google Drive wants a sign-in; {_HOW_TO_SHARE}",
    token_rejected=f"Google Drive wants a sign-in; {_HOW_TO_SHARE}",
    not_found="Google Drive has no such file; open the link in a private window to see whether it is shared",
    web_page=f"Google Drive sent a web page instead of the file; {_HOW_TO_SHARE}",
)


def parse(link: ParsedUrl) -> RemoteFile:
    """Parse a link to one file; folders and Google's own documents are refused.

    Raises:
        LinkError: the link leads to no single file.
    """
    segments = link.segments
    if "folders" in segments or "folderview" in segments or "embeddedfolderview" in segments:
        raise link.refusal(
            "is a folder in Google Drive; open it, and paste the link of one file in it", code="folder_link"
        )
    for segment in segments:
        if segment in _DOCUMENTS:
            raise link.refusal(f"is a Google {_DOCUMENTS[segment]}; paste the link of a .safetensors file")
    file_id = _file_id(link)
    if not file_id:
        raise link.refusal("names no file in Google Drive; use Share, Copy link, on the file itself")
    url = with_query(
        _DOWNLOAD_URL, id=file_id, export="download", confirm="t", resourcekey=link.parameter("resourcekey")
    )
    return RemoteFile(SITE, url, link.redacted, hints=_HINTS)


def _file_id(link: ParsedUrl) -> str:
    in_path = re.search(r"/d/([\w-]+)", link.path)
    if in_path:
        return in_path.group(1)
    in_query = link.parameter("id")
    return in_query if re.fullmatch(r"[\w-]+", in_query) else ""


def confirmed_url(page: str, url: str) -> str | None:
    """Return the URL behind a page that asks to confirm a download that was not scanned for viruses.

    Args:
        page: the page's HTML.
        url: the URL that the page came from.

    Returns:
        The URL, or None when the page is none of Google's, or offers no download.

    Raises:
        LinkError: the URL is malformed.
    """
    if not ParsedUrl.parse(url).host.endswith(".google.com"):
        return None
    form = _DownloadForm()
    with contextlib.suppress(AssertionError):  # the parser's answer to some malformed declarations
        form.feed(page)
    if form.action is not None:
        return join_url(url, f"{form.action}{'&' if '?' in form.action else '?'}{urlencode(form.fields)}")
    older = re.search(r'href="(/uc\?export=download[^"]{1,2000})"', page)
    if older:
        return join_url(url, html.unescape(older.group(1)))
    scripted = re.search(r'"downloadUrl":"([^"]{1,2000})"', page)
    return join_url(url, _unescape_javascript(scripted.group(1))) if scripted else None


def refusal_reason(page: str) -> str:
    """Return the reason that a page of Drive gives for refusing a download, or ''."""
    _, marker, rest = page.partition('<p class="uc-error-subcaption"')
    if not marker:
        return ""
    inner = rest[:2000].partition(">")[2].partition("</p>")[0]
    return " ".join(html.unescape(re.sub(r"<[^>]*>", "", inner)).split())[:400]


def _unescape_javascript(text: str) -> str:
    """Return a JavaScript string's content; its escapes are those of JSON."""
    return re.sub(r"\\u([0-9a-fA-F]{4})", lambda match: chr(int(match.group(1), 16)), text).replace("\\/", "/")


class _DownloadForm(HTMLParser):
    """The action and hidden inputs of ``<form id="download-form">``."""

    def __init__(self) -> None:
        super().__init__()
        self.action: str | None = None
        self.fields: dict[str, str] = {}
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        if tag == "form" and attributes.get("id") == "download-form":
            self.action, self._inside = attributes.get("action", ""), True
        elif tag == "input" and self._inside and attributes.get("type") == "hidden":
            self.fields[attributes.get("name", "")] = attributes.get("value", "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._inside = False
