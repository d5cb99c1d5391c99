"""``lora-service check``: the report on the pictures, without a training."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from lora_service.cli.field_options import ConfigCommand, config_options
from lora_service.dataset.contact_sheet import contact_sheet
from lora_service.dataset.load import load_dataset
from lora_service.models.registry import SD15, locate
from lora_service.settings import Settings
from lora_service.training.config import TrainConfig

_INPUTS = ("task", "trigger", "resolution", "caption_mode", "custom_prompts", "mask_mode", "aspect_ratio_buckets")


@click.command("check", cls=ConfigCommand)
@click.argument("source", nargs=-1, required=True, type=click.Path(path_type=Path))
@config_options(TrainConfig, only=_INPUTS)
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
@click.option("-o", "sheet", type=click.Path(path_type=Path), help="Write a contact sheet of the exact crops here.")
def check_command(source: Sequence[Path], as_json: bool, sheet: Path | None, **inputs: Any) -> None:
    """Show what a training would use of pictures, without training.

    SOURCE is a zip, a tar, a folder, or pictures.
    """
    config = TrainConfig.of({name: value for name, value in inputs.items() if value is not None})
    settings = Settings.from_environment()
    defaults = locate(settings.base_model, settings.model_cache)[1] or SD15
    options = config.dataset_options(defaults, settings, config.trigger)
    with tempfile.TemporaryDirectory() as folder:
        dataset = load_dataset(source, options, Path(folder))
    if sheet is not None:
        contact_sheet(dataset).save(sheet)
    if as_json:
        click.echo(json.dumps(dataset.report.as_json(), indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(dataset.report.lines()))
