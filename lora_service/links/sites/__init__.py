"""One module per site: which hosts are its own, and what its links mean.

A site's ``parse`` is pure: :class:`~lora_service.links.link.Link` in,
:class:`~lora_service.links.source.Source` or :class:`~lora_service.errors.LinkError` out.
"""

from __future__ import annotations

from collections.abc import Callable

from lora_service.links.link import Link
from lora_service.links.sites import civitai, dropbox, github, google_drive, hugging_face, replicate, web
from lora_service.links.source import Catalogue, Source

PARSERS: dict[str, Callable[[Link], Source]] = {
    host: site.parse
    for site in (civitai, dropbox, github, google_drive, hugging_face, replicate)
    for host in site.HOSTS
}


def parse(link: Link) -> Source:
    """The source that a link names, by the rules of the site whose host it has."""
    if replicate.is_file_host(link.host):
        return replicate.parse(link)
    return PARSERS.get(link.host, web.parse)(link)


def follow_page(source: Source, page: str, url: str) -> str | None:
    """The address behind a page that only asks to confirm a download, or None."""
    return google_drive.follow_page(page, url) if source.site == google_drive.SITE else None


def reason(source: Source, page: str) -> str:
    """The site's own words on a page that refuses a download, or ''."""
    return google_drive.reason(page) if source.site == google_drive.SITE else ""


def choose(source: Source, listing: object) -> Source:
    """The file of a listing that a source without one means.

    Raises:
        LinkError: there is none, or more than one.
    """
    return _CHOICES[source.catalogue](source, listing)


_CHOICES: dict[Catalogue, Callable[[Source, object], Source]] = {
    Catalogue.HUGGING_FACE: hugging_face.choose,
    Catalogue.CIVITAI: civitai.choose,
}
