"""The command line's part that is about base models: ``download-base NAME``."""

from __future__ import annotations

from pathlib import Path

import click

from lora_service.errors import InputError
from lora_service.settings import Settings


@click.command("download-base")
@click.argument("name")
@click.option("--to", type=click.Path(path_type=Path), help="Folder, in place of the one where BASE_MODEL=NAME looks.")
@click.option("--revision", default="", help="Branch, tag or commit; NAME@REVISION means the same.")
def download_command(name: str, to: Path | None, revision: str) -> None:
    """Fetch the base model NAME (sd15, sdxl, owner/name …) from the hub: what is needed of it, checked, resumable."""
    from lora_service.models.hub_download import download_base

    if revision and "@" in name:
        raise InputError("--revision", revision, f"left out beside {name!r}, which names a revision already")
    asked = f"{name}@{revision}" if revision else name
    folder = download_base(asked, Settings.from_environment(), to=to, log=click.echo)
    click.echo(f"{asked} is in {folder}")
    click.echo(f"next: BASE_MODEL={to or asked} lora-service generate 'a photo of a dog'")
