"""``lora-service check``: the picture report, without a training."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import click

from lora_service.dataset.captions.model import CaptionModelRef
from lora_service.dataset.captions.templates import DEFAULT_MARKS, parse_prompts
from lora_service.dataset.choices import CaptionMode, MaskMode, Task
from lora_service.dataset.contact_sheet import contact_sheet
from lora_service.dataset.load import load_dataset
from lora_service.dataset.options import DatasetOptions, UploadLimits
from lora_service.models.registry import SD15, locate
from lora_service.settings import Settings


@click.command("check")
@click.argument("source", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--task", type=click.Choice(get_args(Task)), default="face", show_default=True)
@click.option("--resolution", type=int, help="Side in pixels.  [default: the base model's own, as in training]")
@click.option("--mask-mode", type=click.Choice(get_args(MaskMode)), default="auto", show_default=True)
@click.option("--caption-mode", type=click.Choice(get_args(CaptionMode)), default="auto", show_default=True)
@click.option("--custom-prompts", default="", help="JSON list of templates with {} for the subject.")
@click.option("--trigger", default="", help="The word that stands for the subject in caption files.")
@click.option("--aspect-ratio-buckets", is_flag=True, help="Keep the pictures' shapes instead of squares.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
@click.option("-o", "sheet", type=click.Path(path_type=Path), help="Write a contact sheet of the exact crops here.")
def check_command(source: Sequence[Path], as_json: bool, sheet: Path | None, **inputs: Any) -> None:
    """Say what a training would use of SOURCE: a zip, a tar, a folder or pictures."""
    with tempfile.TemporaryDirectory() as folder:
        pictures = load_dataset(source, _options(Settings.from_environment(), **inputs), Path(folder))
    if sheet is not None:
        contact_sheet(pictures).save(sheet)
    if as_json:
        click.echo(json.dumps(pictures.report.as_json(), indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(pictures.report.lines()))


def _options(
    settings: Settings, *, resolution: int | None, trigger: str, custom_prompts: str, **same_name: Any
) -> DatasetOptions:
    """As the training on this base reads pictures."""
    defaults = locate(settings.base_model, settings.model_cache)[1] or SD15
    return DatasetOptions(
        **same_name,
        resolution=resolution or defaults.resolution,
        bucket_step=defaults.bucket_step,
        custom_prompts=parse_prompts(custom_prompts),
        trigger_words=(*DEFAULT_MARKS, trigger) if trigger else DEFAULT_MARKS,
        limits=UploadLimits.from_settings(settings),
        face_model=settings.face_model,
        caption_model=CaptionModelRef.from_settings(settings),
    )
