"""The pictures of a training as it would take them, without the training and without torch."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from lora_service.dataset.captions.token_window import TokenWindow
from lora_service.dataset.load import TrainingDataset, load_dataset
from lora_service.models.families.family import Family
from lora_service.models.families.sd1 import SD1
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


@dataclass(frozen=True)
class DatasetPreview:
    """The pictures that a training would use.

    Attributes:
        dataset: of the subject.
        of_class: the class pictures that were given, None where none were, or none are wanted.
        warnings: sentences about the inputs, and what the base leaves out of them.
    """

    dataset: TrainingDataset
    of_class: TrainingDataset | None
    warnings: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return the lines that the training's log would have."""
        class_lines = class_report_lines(self.of_class.report) if self.of_class else []
        return [*self.dataset.report.lines(), *class_lines, *self.warnings]


def preview_dataset(
    source: Path | Sequence[Path],
    config: TrainConfig,
    settings: Settings,
    folder: Path,
    *,
    class_data: Path | None = None,
) -> DatasetPreview:
    """Load the pictures of ``source`` as a training with ``config`` on the settings' base would.

    Args:
        folder: for what is unpacked.
        class_data: as of :class:`PictureSources`.

    Raises:
        PicturesError: the pictures cannot be used.
        InputError: an input cannot be used.
    """
    base_path, defaults = locate(settings.base_model, settings.model_cache)
    family = family_at(settings.base_model, base_path) or SD1
    defaults = defaults or next(iter(family.bases.values())).defaults
    said: list[str] = []
    config = fit_to_family(config, family, said.append)
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
    dataset = load_dataset(source, options, folder)
    of_class = given_class_pictures(PictureSources(source, class_data), options, dataset.report, resolved, folder)
    if of_class is not None:
        dataset = replace(dataset, report=dataset.report.without_class_pictures())
    return DatasetPreview(dataset, of_class, (*said, *warn_of_inputs(config, dataset.report)))


def _token_window(base: Path | None, chunks: int, family: Family) -> TokenWindow:
    """Return the tokens of a caption that the base reads, by the tokenizer in its folder.

    Words and marks are counted where it is not on this machine: CLIP has a token or more for each of them.
    """
    if not family.learns_text or family.caption_tokens:  # a language model reads more than most caption files hold
        size = family.caption_tokens or _LANGUAGE_MODEL_POSITIONS
        return TokenWindow(lambda text: len(_WORD.findall(text)), size, subject_tokens=3)
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
