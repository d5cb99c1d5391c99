"""The class pictures that an upload holds: a zip of their own, or the folder ``reg`` of the subject's; no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lora_service.dataset.captions.templates import fill_template
from lora_service.dataset.load import TrainingDataset, load_dataset
from lora_service.dataset.options import SUBJECT, DatasetOptions
from lora_service.dataset.report import DatasetReport
from lora_service.dataset.training_images import TrainingImage
from lora_service.downloads.parsed_url import redact
from lora_service.errors import InputError, blame_input
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.inputs.resolved_config import ResolvedConfig

_IN_FRONT = f"{SUBJECT}, "
"""Put before a caption that names no subject: a dataset's captions are templates, all of them."""


@dataclass(frozen=True)
class PictureSources:
    """The files of a training.

    Attributes:
        pictures: an archive, a folder or a picture of the subject, or several of these.
        class_data: an archive, a folder or a picture of its class; None: there is none.
    """

    pictures: Path | Sequence[Path]
    class_data: Path | None = None


@dataclass(frozen=True)
class ClassPictures:
    """The pictures of the subject's class that a training keeps as they are.

    Attributes:
        are_drawn: True if the base drew them, and nobody gave them.
    """

    images: tuple[TrainingImage, ...] = ()
    are_drawn: bool = False


def check_class_data(class_data: object, config: TrainConfig) -> None:
    """Check that ``class_data``, where it is given, is a file and will be used.

    Raises:
        InputError: it is not so.
    """
    if class_data is None:
        return
    shown = class_data.name if isinstance(class_data, Path) else redact(str(class_data))
    if not isinstance(class_data, Path):
        raise InputError("class_data", shown, "an uploaded zip or an http(s) link to one")
    if config.preservation != "prior":
        expected = f"left out when preservation is {config.preservation!r}: only 'prior' takes class pictures"
        raise InputError("class_data", shown, expected, code="unused_class_data")
    if not config.max_train_steps_tuning:
        expected = "left out when max_train_steps_tuning is 0: stage 1 changes nothing of the base"
        raise InputError("class_data", shown, expected, code="unused_class_data")


def class_options(options: DatasetOptions, resolved: ResolvedConfig) -> DatasetOptions:
    """Return the options for class pictures beside a subject's ``options``: alike, but that no subject is in them.

    A picture without a caption file gets the class prompts.
    """
    return replace(
        options,
        mask_mode="none",
        caption_mode="template" if options.caption_mode == "template" else "auto",
        custom_prompts=tuple(f"{_IN_FRONT}{prompt}" for prompt in resolved.class_prompts),
        captions={},
        trigger_words=(),
        takes_folder_word=False,
        token_window=options.token_window and replace(options.token_window, subject_tokens=0),
    )


def class_caption(template: str, class_word: str) -> str:
    """Return a class picture's caption, by its template in the dataset."""
    return fill_template(template.removeprefix(_IN_FRONT), class_word)


def given_class_pictures(
    sources: PictureSources, options: DatasetOptions, report: DatasetReport, resolved: ResolvedConfig, folder: Path
) -> TrainingDataset | None:
    """Return the class pictures of ``class_data``, else of the folder ``reg`` among the subject's.

    Args:
        options, report: of the subject's pictures.
        folder: the job's folder.

    Returns:
        None where there are none, or none are wanted.

    Raises:
        PicturesError: as of ``load_dataset``.
    """
    if resolved.preservation != "prior":
        return None
    options = class_options(options, resolved)
    if sources.class_data is not None:
        with blame_input("class_data"):
            return load_dataset(sources.class_data, options, folder)
    if report.has_class_pictures:
        return load_dataset(sources.pictures, replace(options, takes_class_folders=True), folder)
    return None


def class_report_lines(report: DatasetReport) -> list[str]:
    """Return the report of the class pictures for a log."""
    return [f"class {line}" if line.startswith("pictures:") else f"class picture: {line}" for line in report.lines()]
