"""GitHub: files of a repository and of a release."""

from __future__ import annotations

from lora_service.downloads.parsed_url import ParsedUrl, redact
from lora_service.downloads.remote_file import AuthScope, ErrorHints, RemoteFile
from lora_service.errors import LinkError

SITE = "github"
RAW_HOST = "raw.githubusercontent.com"
HOSTS = ("github.com", "www.github.com", RAW_HOST, "media.githubusercontent.com", "gist.github.com")

_ADVICE = ErrorHints(
    no_token="GitHub wants a sign-in; make the repository public, or give a GitHub token as api_token",
    bad_token="GitHub does not accept the token for this file; check that it may read the repository",
    missing="GitHub has no such file, or its repository is private; check the link, or give a token as api_token",
    page="GitHub sent a web page instead of the file; copy the link of the Raw button",
)


def parse(link: ParsedUrl) -> RemoteFile:
    """A link to one file.

    Raises:
        LinkError: the link leads to a repository, a folder or a page.
    """
    steps = link.steps
    if link.host in (RAW_HOST, "media.githubusercontent.com"):
        return _source(link, f"https://{link.host}{link.path}")
    if link.host == "gist.github.com":
        raise LinkError(f"The link {redact(link.url)!r} is the page of a gist; paste the link of its Raw button.")
    if len(steps) >= 5 and steps[2] in ("blob", "raw"):
        owner, name, _, *rest = steps
        return _source(link, f"https://{RAW_HOST}/{owner}/{name}/{'/'.join(rest)}")
    if len(steps) == 6 and steps[2:4] == ("releases", "download"):
        return _source(link, f"https://github.com{link.path}")
    raise LinkError(f"The link {redact(link.url)!r} is no file on GitHub; open the file there, and paste its link.")


def lfs_advice(source: RemoteFile) -> str:
    """What to paste instead of a raw link that leads to a Git LFS pointer."""
    content = source.url.replace(f"//{RAW_HOST}/", "//media.githubusercontent.com/media/")
    return f"paste {content} instead" if source.site == SITE else "paste the link of the content itself"


def _source(link: ParsedUrl, url: str) -> RemoteFile:
    return RemoteFile(SITE, url, redact(link.url), token=AuthScope.GIVEN, advice=_ADVICE)
