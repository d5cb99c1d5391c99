"""The commands about links: ``resolve LINK``, ``cache ls`` and ``cache clear``."""

from __future__ import annotations

import json
import time

import click

from lora_service.downloads.cache import Cache
from lora_service.downloads.remote_file import Listing
from lora_service.downloads.resolve import resolve
from lora_service.settings import MEBIBYTE, Settings


@click.command("resolve")
@click.argument("link")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def resolve_command(link: str, as_json: bool) -> None:
    """Show what would be fetched for LINK, without asking the network."""
    source = resolve(link, allow_local=True)
    url = source.link if source.site == "data" else source.url
    if as_json:
        fields = {"site": source.site, "url": url, "headers": list(source.headers), "cache_key": source.cache_key}
        click.echo(json.dumps(fields, indent=2))
        return
    click.echo(f"site       {source.site}")
    click.echo(f"url        {url}")
    click.echo(f"headers    {', '.join(source.headers) or '-'}")
    click.echo(f"cache key  {source.cache_key}")
    if source.catalogue is not Listing.NONE:
        click.echo("note       the url is a listing; the one LoRA in it is fetched")


@click.group("cache")
def cache_group() -> None:
    """Look at the downloaded LoRAs, or remove them."""


@cache_group.command("ls")
def cache_ls() -> None:
    """List the downloaded LoRAs, the last used first."""
    cache = _cache()
    for entry in cache.entries():
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(cache.used(entry)))
        private = " (with a token)" if entry.private else ""
        click.echo(f"{used}  {entry.size / MEBIBYTE:8.1f} MiB  {entry.sha256[:12]}  {entry.link}{private}")
    click.echo(f"{cache.size() / MEBIBYTE:.1f} MiB in {cache.folder}")


@cache_group.command("clear")
def cache_clear() -> None:
    """Remove all downloaded LoRAs."""
    cache = _cache()
    size = cache.size()
    count = cache.clear()
    click.echo(f"{count} file{'s' * (count != 1)}, {size / MEBIBYTE:.1f} MiB, removed from {cache.folder}")


def _cache() -> Cache:
    settings = Settings.from_environment()
    return Cache(settings.lora_cache, settings.lora_cache_max_bytes)
