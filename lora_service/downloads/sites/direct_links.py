"""Links that lead straight to a file: Dropbox, GitHub, any other web server, and data URIs."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import replace
from urllib.parse import unquote_to_bytes

from lora_service.downloads.parsed_url import ParsedUrl, redact, with_query
from lora_service.downloads.remote_file import AuthScope, ErrorHints, RemoteFile
from lora_service.errors import LinkError

DROPBOX_HOSTS = ("dropbox.com", "www.dropbox.com", "m.dropbox.com")
_DROPBOX_HINTS = ErrorHints(
    sign_in_required="Dropbox wants a sign-in; share the file as “Anyone with this link”",
    token_rejected="Dropbox wants a sign-in; share the file as “Anyone with this link”",
    not_found="Dropbox has no such file, or it is no longer shared; copy the link again",
    web_page="Dropbox sent a web page instead of the file, as it does when a link has expired or asks for a password; "
    "share the file again without one",
)

_GITHUB_RAW_HOST = "raw.githubusercontent.com"
_GITHUB_MEDIA_HOST = "media.githubusercontent.com"
GITHUB_HOSTS = ("github.com", "www.github.com", _GITHUB_RAW_HOST, _GITHUB_MEDIA_HOST, "gist.github.com")
_LATEST_RELEASE = ("releases", "latest", "download")
_GITHUB_HINTS = ErrorHints(
    sign_in_required="GitHub wants a sign-in; make the repository public, or give a GitHub token as api_token",
    token_rejected="GitHub does not accept the token for this file; check that it may read the repository",
    not_found="GitHub has no such file, or its repository is private; check the link, or give a token as api_token",
    web_page="GitHub sent a web page instead of the file; copy the link of the Raw button",
)

_DATA_URI = re.compile(r"data:([^;,]*)[^,]*?(;base64)?,(.*)", re.DOTALL | re.IGNORECASE)


def parse_dropbox(link: ParsedUrl) -> RemoteFile:
    """Parse a shared link to one file; Dropbox shows a page unless the download itself is requested.

    Raises:
        LinkError: the link leads to a folder or a page.
    """
    match link.segments:
        case ("sh", *_) | ("scl", "fo", *_) | ("home", *_):
            raise link.refusal(
                "is a folder in Dropbox; open it, and paste the shared link of one file", code="folder_link"
            )
        case ("s", _, *_) | ("scl", "fi", _, *_):
            url = with_query(f"https://www.dropbox.com{link.path}", rlkey=link.parameter("rlkey"), dl="1")
            return RemoteFile("dropbox", url, link.redacted, hints=_DROPBOX_HINTS)
    raise link.refusal("is no shared file of Dropbox; use Share, Copy link, on the file")


def parse_github(link: ParsedUrl) -> RemoteFile:
    """Parse a link to one file of a repository or of a release.

    Raises:
        LinkError: the link leads to a repository, a folder or a page.
    """
    segments = link.segments
    if link.host in (_GITHUB_RAW_HOST, _GITHUB_MEDIA_HOST):
        url = f"https://{link.host}{link.path}"
    elif link.host == "gist.github.com":
        raise link.refusal("is the page of a gist on GitHub; paste the link of its Raw button")
    elif len(segments) >= 5 and segments[2] in ("blob", "raw"):
        owner, name, _, *rest = segments
        url = f"https://{_GITHUB_RAW_HOST}/{owner}/{name}/{'/'.join(rest)}"
    elif len(segments) == 6 and (segments[2:4] == ("releases", "download") or segments[2:5] == _LATEST_RELEASE):
        url = f"https://github.com{link.path}"
    else:
        raise link.refusal("is no file on GitHub; open the file there, and paste its link")
    return RemoteFile("github", url, link.redacted, auth_scope=AuthScope.REQUEST, hints=_GITHUB_HINTS)


def git_lfs_content(remote: RemoteFile) -> RemoteFile | None:
    """Return the content behind a raw link of GitHub that leads to a Git LFS pointer; None for any other link."""
    raw = f"https://{_GITHUB_RAW_HOST}/"
    if not remote.url.startswith(raw):
        return None
    return replace(remote, url=f"https://{_GITHUB_MEDIA_HOST}/media/{remote.url.removeprefix(raw)}")


def parse_web(link: ParsedUrl) -> RemoteFile:
    """Parse a link to any other server; ``#sha256=…`` at its end is verified, and a token needs https."""
    digest = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", link.fragment)
    return RemoteFile(
        "web",
        link.url,
        link.redacted,
        auth_scope=AuthScope.REQUEST if link.scheme == "https" else AuthScope.NONE,
        sha256=digest.group(1).lower() if digest else "",
    )


def parse_data_uri(text: str) -> RemoteFile:
    """Parse a data URI (RFC 2397), and check that it can be decoded.

    Raises:
        LinkError: it is not valid base64, or no data URI.
    """
    remote = RemoteFile("data", text, redact(text))
    decode_data_uri(remote)
    return remote


def decode_data_uri(remote: RemoteFile) -> tuple[str, bytes]:
    """Return the media type ('' when there is none) and the bytes of a data URI.

    Raises:
        LinkError: it is not valid base64, or no data URI.
    """
    match = _DATA_URI.fullmatch(remote.url)
    if not match:
        raise LinkError(
            f"The link {remote.link!r} is no data URI; it must look like data:;base64,….", code="malformed_data_uri"
        )
    media_type, is_base64, encoded = match.groups()
    data = unquote_to_bytes(encoded)
    if not is_base64:
        return media_type, data
    try:
        return media_type, base64.b64decode(re.sub(rb"\s+", b"", data), validate=True)
    except binascii.Error as error:
        raise LinkError(
            f"The data URI {remote.link!r} is not valid base64; make it again.", code="malformed_data_uri"
        ) from error
