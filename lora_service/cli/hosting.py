"""The commands for a machine that serves: ``serve`` and ``download-base``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from lora_service.errors import InputError
from lora_service.models.hub_download import download_base
from lora_service.models.registry import REGISTRY, locate
from lora_service.serving import foreground
from lora_service.serving.entries import Mode
from lora_service.settings import Settings


@click.command("serve")
@click.argument("mode", type=click.Choice(["predict", "train"]), metavar="predict|train")
@click.option("--port", type=int, help="Port.  [default: 5000 for predict, 5001 for train]")
@click.option("--host", default="127.0.0.1", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--upload-url", metavar="URL", help="Have outputs uploaded to URL, not put into the answers.")
def serve_command(mode: Mode, port: int | None, host: str, upload_url: str | None) -> None:
    """Run Cog's own HTTP server without Docker, and restart its worker when it dies."""
    settings = Settings.from_environment()
    locate(settings.base_model, settings.model_cache)  # refuse what can be no base model here, not in every job
    sys.exit(foreground.serve(mode, port=port, host=host, upload_url=upload_url))


@click.command("download-base")
@click.argument("name")
@click.option("--to", type=click.Path(path_type=Path), help="Folder, in place of the one where BASE_MODEL=NAME looks.")
@click.option("--revision", default="", help="Branch, tag or commit; NAME@REVISION means the same.")
def download_base_command(name: str, to: Path | None, revision: str) -> None:
    """Fetch the base model NAME from the hub.

    NAME is sd15, sdxl, klein, zimage … or owner/name. Only the files that are needed are fetched, and checked; a
    download that was interrupted goes on where it stopped.
    """
    if revision and "@" in name:
        raise InputError("--revision", revision, f"left out beside {name!r}, which names a revision already")
    name_at_revision = f"{name}@{revision}" if revision else name
    folder = download_base(name_at_revision, Settings.from_environment(), to=to, log=click.echo)
    click.echo(f"{name_at_revision} is in {folder}")
    if registered := REGISTRY.get(name.partition("@")[0]):
        click.echo(f"licence of the weights: {registered.licence}")
        if twin := registered.defaults.draws_with:
            click.echo(f"LoRAs that are trained on it are drawn with {twin} too: lora-service download-base {twin}")
        if trained := registered.defaults.trains_on:
            click.echo(f"LoRAs for it are trained on {trained}: lora-service download-base {trained}")
    click.echo(f"next: BASE_MODEL={to or name_at_revision} lora-service generate 'a photo of a dog'")
