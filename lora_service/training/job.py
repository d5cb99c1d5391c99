"""One training, from pictures to a LoRA file."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from lora_service.errors import InputError
from lora_service.models.bundle import BaseModel
from lora_service.pictures import Limits, PictureOptions, TrainingPicture, TrainingPictures, read_pictures
from lora_service.pictures.captioner import CaptionModel
from lora_service.pictures.captions import DEFAULT_MARKS
from lora_service.settings import Settings
from lora_service.training.config import TrainConfig, TrainPlan, plan
from lora_service.training.export import Learned, write
from lora_service.training.latents import CachedLatents, encode
from lora_service.training.layers import Layers, lora_layers
from lora_service.training.loop import OnProgress, StageReport
from lora_service.training.memory import choose_checkpointing, out_of_memory_told
from lora_service.training.stages import Material, invert, tune
from lora_service.training.tokens import added_tokens, first_rows

# Rare words that mean nothing to a base model and read well enough to be typed.
TRIGGERS = ("ohwx", "zkvi", "qlum", "vrep", "xabo", "nujx", "wizq", "bovk", "jyru", "kexo", "plyv", "gwoz")


@dataclass(frozen=True)
class TrainResult:
    """What a training made, and how it went."""

    path: Path
    plan: TrainPlan
    pictures: TrainingPictures
    stages: dict[str, StageReport]
    seconds: dict[str, float]

    @property
    def prompt(self) -> str:
        """A prompt to start with."""
        return self.plan.prompt


@dataclass
class Job:
    """Runs one training.

    Args:
        base: the base model; its weights are as before when :meth:`run` ends, however it ends.
        folder: the job's own working folder; the LoRA file is written there.
        on_progress: called now and then with the stage, the step and the loss.
        tell: called with lines for the person who waits.
        settings: limits of what is read, and the models that find faces and write captions.
    """

    base: BaseModel
    folder: Path
    on_progress: OnProgress = lambda progress: None
    tell: Callable[[str], None] = lambda line: None
    settings: Settings = field(default_factory=Settings)
    _seconds: dict[str, float] = field(default_factory=dict, init=False)

    def run(self, source: Path | Sequence[Path], config: TrainConfig) -> TrainResult:
        """Train on the pictures of ``source`` as ``config`` asks.

        Raises:
            PicturesError: the pictures cannot be used.
            InputError: an input cannot be used on this base.
        """
        decided = self._decide(config)
        checkpointing = choose_checkpointing(self.base, decided.config, self.tell)
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._timed("pictures"):
            pictures = read_pictures(source, self._picture_options(decided), self.folder)
        for line in pictures.report.lines():
            self.tell(line)
        self.tell(f"base: {self.base.recipe.title}; {decided.story(config)}")
        with out_of_memory_told(self.base, decided.config, checkpointing=checkpointing):
            with self._timed("latents"):
                cache = self._encode(pictures.pictures, decided)
            with precision(self.base, decided, checkpointing=checkpointing) as autocast:
                material = Material(self.base, pictures.pictures, cache, decided, self.base.text, autocast)
                learned, stages = self._learn(material)
        path = write(self.folder / "lora.safetensors", learned, self.base, decided, pictures.report, stages)
        return TrainResult(path, decided, pictures, stages, dict(self._seconds))

    def _encode(self, pictures: tuple[TrainingPicture, ...], decided: TrainPlan) -> list[CachedLatents]:
        config = decided.config
        flip, jitter = bool(config.flip), bool(config.color_jitter)
        return encode(pictures, self.base, flip=flip, color_jitter=jitter, seed=config.seed or 0)

    def _learn(self, material: Material) -> tuple[Learned, dict[str, StageReport]]:
        """Both stages; the base is as before afterwards, and what was learned is beside it."""
        decided = material.plan
        generator = torch.Generator().manual_seed(decided.config.seed or 0)
        learned = Learned(None)
        stages: dict[str, StageReport] = {}
        with ExitStack() as changes:
            if decided.tokens:
                start = first_rows(self.base, decided.tokens, decided.initializers, generator)
                learned.tokens = changes.enter_context(added_tokens(self.base, decided.tokens, start))
                material = replace(material, text=learned.tokens.text)
                with self._timed("stage 1"):
                    stages["stage 1"] = invert(material, learned.tokens, self.on_progress)
            if decided.config.max_train_steps_tuning:
                learned.layers = self._add_layers(changes, decided, generator)
                with self._timed("stage 2"):
                    stages["stage 2"] = tune(material, learned.layers, learned.tokens, self.on_progress)
        return learned, stages

    def _decide(self, config: TrainConfig) -> TrainPlan:
        seed = random.SystemRandom().randrange(2**32) if config.seed is None else config.seed
        trigger = config.trigger or " ".join(
            word for word in (random.Random(seed).choice(TRIGGERS), config.class_word) if word
        )
        decided = plan(config, self.base.recipe, trigger, seed)
        self.base.check_side("resolution", decided.config.resolution or self.base.recipe.resolution)
        return decided

    def _picture_options(self, decided: TrainPlan) -> PictureOptions:
        config = decided.config
        return PictureOptions(
            resolution=config.resolution or self.base.recipe.resolution,
            task=config.task,
            mask_mode=config.mask_mode,
            caption_mode=config.caption_mode,
            aspect_ratio_buckets=config.aspect_ratio_buckets,
            bucket_step=self.base.recipe.bucket_step,
            custom_prompts=config.templates,
            trigger_words=(*DEFAULT_MARKS, decided.trigger, "".join(decided.tokens)),
            limits=Limits.from_settings(self.settings),
            face_model=self.settings.face_model,
            caption_model=CaptionModel.from_settings(self.settings),
        )

    def _add_layers(self, changes: ExitStack, decided: TrainPlan, generator: torch.Generator) -> Layers:
        """LoRA layers in the UNet and in the text encoders, until ``changes`` ends; none where the rate is 0."""
        config = decided.config
        rank, alpha = config.lora_rank or 1, config.lora_alpha or 1.0
        layers = {}
        for component, model in self.base.components.items():
            if config.learning_rate_unet if component == "unet" else config.learning_rate_text:
                layers[component] = changes.enter_context(lora_layers(component, model, rank, alpha, generator))
        return layers

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._seconds[phase] = round(time.monotonic() - started, 2)


@contextmanager
def precision(base: BaseModel, decided: TrainPlan, *, checkpointing: bool) -> Iterator[torch.dtype | None]:
    """The dtype to compute in, None for fp32; within it the UNet's gradients are checkpointed where asked for.

    ``auto`` is what the base's weights are held in: fp32 on a CPU, which gains
    nothing from less, bf16 on a card that has it, fp16 (with scaled gradients) on older ones.

    Raises:
        InputError: fp16 on a CPU, which has no gradient scaling; or full precision of weights that are held in half.
    """
    asked = decided.config.mixed_precision
    if asked == "fp16" and base.device.type != "cuda":
        raise InputError("mixed_precision", asked, f"auto, no or bf16 on a {base.device.type} device")
    if asked == "no" and base.dtype != torch.float32:
        raise InputError(
            "mixed_precision", asked, "auto, fp16 or bf16 here, as the server holds the base in half precision"
        )
    held = None if base.dtype == torch.float32 else base.dtype
    dtype = {"auto": held, "no": None, "fp16": torch.float16, "bf16": torch.bfloat16}[asked]
    if not checkpointing:
        yield dtype
        return
    base.unet.enable_gradient_checkpointing()
    base.unet.train()  # diffusers checkpoints in training mode only; no part of these UNets has dropout
    try:
        yield dtype
    finally:
        base.unet.eval()
        base.unet.disable_gradient_checkpointing()
