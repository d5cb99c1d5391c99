"""``lora-service check``: the report on the pictures, without a training."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from lora_service.cli.field_options import ConfigCommand, class_data_option, config_options
from lora_service.cli.output_files import check_output, force_option
from lora_service.dataset.contact_sheet import contact_sheet
from lora_service.errors import InputError
from lora_service.generation.request import PICTURE_FORMATS
from lora_service.settings import Settings
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.preview import preview_dataset
from lora_service.whole_files import whole_file


@click.command("check", cls=ConfigCommand)
@click.argument("source", nargs=-1, required=True, type=click.Path(path_type=Path))
@config_options(TrainConfig)
@class_data_option
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
@click.option(
    "-o", "--output", "sheet", type=click.Path(path_type=Path), help="Write a contact sheet of the exact crops here."
)
@force_option()
def check_command(
    source: Sequence[Path], class_data: Path | None, as_json: bool, sheet: Path | None, force: bool, **inputs: Any
) -> None:
    """Show what a training would use of pictures, without training.

    SOURCE is a zip, a tar, a folder, or pictures. All options of train are taken, so that a command line of it can be
    checked as it is.
    """
    if sheet is not None:
        if sheet.suffix.lower() not in PICTURE_FORMATS:
            raise InputError("--output", str(sheet), f"a picture that ends in {', '.join(PICTURE_FORMATS)}")
        check_output(sheet, force=force, inputs=source)
    config = TrainConfig.of(inputs)
    settings = Settings.from_environment()
    with tempfile.TemporaryDirectory() as folder:
        preview = preview_dataset(source, config, settings, Path(folder), class_data=class_data)
    dataset, of_class = preview.dataset, preview.of_class
    if sheet is not None:
        with whole_file(sheet) as path:
            contact_sheet(dataset).save(path, PICTURE_FORMATS[sheet.suffix.lower()])
    if as_json:
        as_object = dataset.report.as_json()
        if of_class is not None:
            as_object["class_pictures"] = of_class.report.as_json()
        click.echo(json.dumps(as_object, indent=2, ensure_ascii=False))
        for warning in preview.warnings:
            click.echo(warning, err=True)
        return
    click.echo("\n".join(preview.lines()))
