"""Dropbox: shared links show a page unless the file itself is asked for."""

from __future__ import annotations

from lora_service.downloads.parsed_url import ParsedUrl, redact, with_query
from lora_service.downloads.remote_file import ErrorHints, RemoteFile
from lora_service.errors import LinkError

SITE = "dropbox"
HOSTS = ("dropbox.com", "www.dropbox.com", "m.dropbox.com")

_ADVICE = ErrorHints(
    no_token="Dropbox wants a sign-in; share the file as “Anyone with this link”",
    bad_token="Dropbox wants a sign-in; share the file as “Anyone with this link”",
    missing="Dropbox has no such file, or it is no longer shared; copy the link again",
    page="Dropbox sent a web page instead of the file, as it does when a link has expired or asks for a password; "
    "share the file again without one",
)


def parse(link: ParsedUrl) -> RemoteFile:
    """A shared link to one file.

    Raises:
        LinkError: the link leads to a folder or a page.
    """
    match link.steps:
        case ("sh", *_) | ("scl", "fo", *_) | ("home", *_):
            raise LinkError(
                f"The link {redact(link.url)!r} is a folder in Dropbox; open it, and paste the shared link of one file."
            )
        case ("s", _, *_) | ("scl", "fi", _, *_):
            url = with_query(f"https://www.dropbox.com{link.path}", rlkey=link.parameter("rlkey"), dl="1")
            return RemoteFile(SITE, url, redact(link.url), advice=_ADVICE)
    raise LinkError(f"The link {redact(link.url)!r} is no shared file of Dropbox; use Share, Copy link, on the file.")
