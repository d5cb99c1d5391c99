"""Prepares a training: the inputs resolved on the base, and the pictures loaded."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from lora_service.dataset.captions.token_window import TokenWindow
from lora_service.dataset.load import TrainingDataset, load_dataset
from lora_service.dataset.options import DatasetOptions
from lora_service.errors import InputError
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.settings import Settings
from lora_service.training.adapters.lora_targets import check_targets
from lora_service.training.data.class_dataset import (
    ClassPictures,
    PictureSources,
    class_options,
    class_report_lines,
    given_class_pictures,
)
from lora_service.training.data.class_image_cache import ClassImageCache
from lora_service.training.data.class_images import ClassImageArtist
from lora_service.training.inputs.config import CLASS_IMAGES, TrainConfig
from lora_service.training.inputs.family_inputs import fit_to_family
from lora_service.training.inputs.resolved_config import ResolvedConfig, resolve_config, with_trigger
from lora_service.training.inputs.trigger_words import choose_trigger_word
from lora_service.training.optimization.processes import Processes
from lora_service.training.runs.starting_lora import StartingLora


class PhaseTimer:
    """The seconds that each phase of a training takes.

    Attributes:
        seconds: phase -> seconds.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Time what is within the context."""
        started = time.monotonic()
        yield
        self.seconds[phase] = round(time.monotonic() - started, 2)


@dataclass(frozen=True)
class PreparedPictures:
    """The pictures of a training, and its inputs as they turned out with them.

    Attributes:
        resolved: with the trigger words of the pictures' folders, where these have some.
    """

    dataset: TrainingDataset
    of_class: ClassPictures
    resolved: ResolvedConfig


@dataclass
class Preparation:
    """Resolves inputs and loads pictures.

    Args:
        folder: the run folder, for what is unpacked.
        start: the LoRA that the training goes on from.
        timer: takes the time.
    """

    base: DiffusionBase
    folder: Path
    settings: Settings
    processes: Processes
    log: Callable[[str], None]
    start: StartingLora | None = None
    timer: PhaseTimer = field(default_factory=PhaseTimer)

    def resolve(self, config: TrainConfig, more_triggers: Sequence[str] = ()) -> ResolvedConfig:
        """Fill in what ``config`` leaves open; without a seed or a trigger, one is drawn.

        Args:
            more_triggers: those of the subjects after the first.

        Raises:
            InputError: an input cannot be used on this base.
        """
        config = fit_to_family(config, self.base.family)
        check_targets(self.base, config.lora_targets)
        drawn = random.SystemRandom().randrange(2**32)
        seed = self.processes.agree(drawn) if config.seed is None else config.seed
        word = choose_trigger_word(self.base.text, random.Random(seed))
        trigger = config.trigger or f"{word} {config.class_word}".strip()
        resolved = resolve_config(config, self.base.defaults, trigger, seed, more_triggers)
        main, *others = resolved.config.resolutions(self.base.defaults)
        self.base.check_side("resolution", main)
        for side in others:
            self.base.check_side("more_resolutions", side)
        self.base.text.with_clip_skip(resolved.config.clip_skip)
        return self.start.resolve(resolved) if self.start else resolved

    def load(self, sources: PictureSources, config: TrainConfig, resolved: ResolvedConfig) -> PreparedPictures:
        """Load the pictures, whose folders may have the trigger words, and those of the class.

        Args:
            resolved: of ``config``.

        Raises:
            PicturesError: they cannot be used.
            InputError: a folder's word cannot be a trigger, or a text is longer than the base reads at once.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.timer.measure("pictures"):
            options = resolved.config.dataset_options(
                self.base.defaults,
                self.settings,
                resolved.trigger,
                "".join(resolved.tokens),
                takes_folder_word=not config.trigger,
                token_window=self._token_window(resolved),
            )
            dataset = load_dataset(sources.pictures, options, self.folder)
        for side in {side for image in dataset.images for side in image.image.size}:  # of buckets, which are long
            self.base.check_longest("resolution", side)
        if dataset.triggers:
            resolved = self._resolve_triggers(config, dataset.triggers, resolved.config.seed)
        class_pictures = self._class_pictures(sources, dataset, options, resolved)
        if class_pictures.images:
            dataset = replace(dataset, report=dataset.report.without_class_pictures())
        return PreparedPictures(dataset, class_pictures, resolved)

    def _resolve_triggers(self, config: TrainConfig, triggers: Sequence[str], seed: int | None) -> ResolvedConfig:
        """Resolve ``config`` with the trigger words that the pictures' folders have.

        Raises:
            InputError: a word cannot be a trigger.
        """
        first, *others = (with_trigger(config, trigger, seed) for trigger in triggers)
        if others and config.preservation != "none":
            expected = f"none, as the folders name several subjects ({', '.join(triggers)}), each of a class of its own"
            raise InputError("preservation", config.preservation, expected, code="several_subjects")
        resolved = self.resolve(first, [other.trigger for other in others])
        if others:
            for number, subject in enumerate(resolved.subjects, start=1):
                self.log(f"subject {number}: trigger {subject.trigger!r}, tokens {' '.join(subject.tokens) or 'none'}")
        else:
            self.log(f"trigger: {first.trigger!r}, the word of the pictures' folder")
        return resolved

    def _token_window(self, resolved: ResolvedConfig) -> TokenWindow:
        """Return the tokens that the base reads of a caption.

        Raises:
            InputError: the trigger word or the new tokens alone are more than it reads at once.
        """
        text = self.base.text
        chunks = min(resolved.config.chunks, text.max_chunks)
        window = TokenWindow(text.count, text.chunk_tokens, subject_tokens=len(resolved.tokens), chunks=chunks)
        if len(resolved.tokens) > window.size:
            expected = f"at most {window.size} names, as the base reads so many tokens"
            raise InputError("placeholder_tokens", resolved.config.placeholder_tokens, expected, code="too_many_tokens")
        return window.for_subject("trigger", resolved.trigger)

    def _class_pictures(
        self, sources: PictureSources, dataset: TrainingDataset, options: DatasetOptions, resolved: ResolvedConfig
    ) -> ClassPictures:
        """Return the pictures of the subject's class, none where they are not needed."""
        if resolved.preservation != "prior":
            return ClassPictures()
        with self.timer.measure("class pictures"):
            class_dataset = given_class_pictures(sources, options, dataset.report, resolved, self.folder)
            if class_dataset is None:
                settings = self.settings
                cache = ClassImageCache(settings.class_image_cache, settings.class_image_cache_max_bytes)
                artist = ClassImageArtist(self.base, cache, self.log)
                count = resolved.config.num_class_images or CLASS_IMAGES
                drawn = artist.dataset(resolved.class_prompts, count, class_options(options, resolved), self.folder)
                return ClassPictures(drawn.images, are_drawn=True)
        for line in class_report_lines(class_dataset.report):
            self.log(line)
        if resolved.config.num_class_images != CLASS_IMAGES:
            self.log("warning: num_class_images has no effect, as class pictures are given")
        return ClassPictures(class_dataset.images)
