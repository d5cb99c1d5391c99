"""``lora-service check``: the report on the pictures, without a training."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_service.cli.field_options import ConfigCommand, class_data_option, config_options
from lora_service.cli.output_files import check_output, force_option, whole_file
from lora_service.dataset.captions.token_window import TokenWindow
from lora_service.dataset.contact_sheet import contact_sheet
from lora_service.dataset.load import load_dataset
from lora_service.errors import InputError
from lora_service.generation.request import PICTURE_FORMATS
from lora_service.models.families.family import Family
from lora_service.models.families.sd1 import SD1, SD15
from lora_service.models.registry import family_at, locate
from lora_service.settings import Settings
from lora_service.training.data.class_dataset import (
    PictureSources,
    check_class_data,
    class_report_lines,
    given_class_pictures,
)
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.inputs.family_inputs import fit_to_family
from lora_service.training.inputs.input_warnings import warn_of_inputs
from lora_service.training.inputs.resolved_config import resolve_config

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


_CLIP_POSITIONS = 77
_LANGUAGE_MODEL_POSITIONS = 480
"""Tokens of a caption beside the template of a chat, of 512."""
_WORD = re.compile(r"\w+|[^\w\s]")


def _token_window(base: Path | None, chunks: int, family: Family) -> TokenWindow:
    """Return the tokens of a caption that the base reads, by the tokenizer in its folder.

    Words and marks are counted where it is not on this machine: CLIP has a token or more for each of them.
    """
    if not family.learns_text:  # a language model reads more than any caption file holds
        return TokenWindow(lambda text: len(_WORD.findall(text)), _LANGUAGE_MODEL_POSITIONS, subject_tokens=3)
    folder = base / "tokenizer" if base and base.is_dir() else base.with_name("tokenizer") if base else None
    if folder is None or not folder.is_dir():
        return TokenWindow(lambda text: len(_WORD.findall(text)), _CLIP_POSITIONS - 2, subject_tokens=2, chunks=chunks)

    @cache
    def tokenizer() -> CLIPTokenizer:
        from transformers import CLIPTokenizer  # a second, and only long captions need it

        return CLIPTokenizer.from_pretrained(folder)

    positions = _positions(folder.with_name("text_encoder") / "config.json")
    return TokenWindow(lambda text: len(tokenizer().tokenize(text)), positions - 2, subject_tokens=2, chunks=chunks)


def _positions(config: Path) -> int:
    try:
        return int(json.loads(config.read_text(encoding="utf-8"))["max_position_embeddings"])
    except (OSError, ValueError, KeyError, TypeError):
        return _CLIP_POSITIONS


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
    settings = Settings.from_environment()
    base_path, defaults = locate(settings.base_model, settings.model_cache)
    defaults, family = defaults or SD15, family_at(settings.base_model, base_path) or SD1
    config = fit_to_family(TrainConfig.of(inputs), family, lambda line: click.echo(line, err=True))
    check_class_data(class_data, config)
    resolved = resolve_config(config, defaults, config.trigger, config.seed or 0)
    options = resolved.config.dataset_options(
        defaults,
        settings,
        resolved.trigger,
        "".join(resolved.tokens),
        takes_folder_word=not config.trigger,
        token_window=_token_window(base_path, config.chunks, family).for_subject("trigger", config.trigger),
    )
    with tempfile.TemporaryDirectory() as folder:
        dataset = load_dataset(source, options, Path(folder))
        sources = PictureSources(source, class_data)
        class_set = given_class_pictures(sources, options, dataset.report, resolved, Path(folder))
    if class_set is not None:
        dataset = replace(dataset, report=dataset.report.without_class_pictures())
    if sheet is not None:
        with whole_file(sheet) as path:
            contact_sheet(dataset).save(path)
    if as_json:
        as_object = dataset.report.as_json()
        if class_set is not None:
            as_object["class_pictures"] = class_set.report.as_json()
        click.echo(json.dumps(as_object, indent=2, ensure_ascii=False))
        return
    class_lines = class_report_lines(class_set.report) if class_set else []
    click.echo("\n".join([*dataset.report.lines(), *class_lines, *warn_of_inputs(config, dataset.report)]))
