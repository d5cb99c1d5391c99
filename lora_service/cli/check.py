"""``lora-service check``: the report on the pictures, without a training."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_service.cli.field_options import ConfigCommand, config_options
from lora_service.dataset.captions.token_window import TokenWindow
from lora_service.dataset.contact_sheet import contact_sheet
from lora_service.dataset.load import load_dataset
from lora_service.models.registry import SD15, locate
from lora_service.settings import Settings
from lora_service.training.config import TrainConfig

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

_INPUTS = ("task", "trigger", "resolution", "caption_mode", "custom_prompts", "mask_mode", "aspect_ratio_buckets")

_CLIP_POSITIONS = 77
_WORD = re.compile(r"\w+|[^\w\s]")


def _token_window(base: Path | None) -> TokenWindow:
    """Return the tokens of a caption that the base reads, by the tokenizer in its folder.

    Words and marks are counted where it is not on this machine: CLIP has a token or more for each of them.
    """
    folder = base / "tokenizer" if base and base.is_dir() else base.with_name("tokenizer") if base else None
    if folder is None or not folder.is_dir():
        return TokenWindow(lambda text: len(_WORD.findall(text)), _CLIP_POSITIONS - 2, subject_tokens=2)

    @cache
    def tokenizer() -> CLIPTokenizer:
        from transformers import CLIPTokenizer  # a second, and only long captions need it

        return CLIPTokenizer.from_pretrained(folder)

    positions = _positions(folder.with_name("text_encoder") / "config.json")
    return TokenWindow(lambda text: len(tokenizer().tokenize(text)), positions - 2, subject_tokens=2)


def _positions(config: Path) -> int:
    try:
        return int(json.loads(config.read_text(encoding="utf-8"))["max_position_embeddings"])
    except (OSError, ValueError, KeyError, TypeError):
        return _CLIP_POSITIONS


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
    path, defaults = locate(settings.base_model, settings.model_cache)
    window = _token_window(path).for_subject("trigger", config.trigger)
    options = config.dataset_options(
        defaults or SD15, settings, config.trigger, takes_folder_word=not config.trigger, token_window=window
    )
    with tempfile.TemporaryDirectory() as folder:
        dataset = load_dataset(source, options, Path(folder))
    if sheet is not None:
        contact_sheet(dataset).save(sheet)
    if as_json:
        click.echo(json.dumps(dataset.report.as_json(), indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(dataset.report.lines()))
