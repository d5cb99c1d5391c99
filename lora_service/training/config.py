"""The inputs of a training, and their resolution on a base: every number as it will be used."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from lora_service.dataset.captions.token_window import TokenWindow
from lora_service.dataset.options import (
    DEFAULT_TRIGGER_WORDS,
    SUBJECT,
    CaptionMode,
    CaptionModelRef,
    DatasetOptions,
    MaskMode,
    Task,
    UploadLimits,
    parse_prompts,
)
from lora_service.errors import InputError
from lora_service.models.registry import ModelDefaults
from lora_service.settings import MEBIBYTE, Settings
from lora_service.validation import Int, validate, without_surrogates

PROMPT_CACHE_BYTES = 512 * MEBIBYTE
"""Most of the device's memory for the prompt embeds of captions that are encoded once: 2,200 captions of SD 1.5 in
fp32."""
_INVISIBLE = {"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"}
"""Unicode categories of characters that nobody sees and nobody can type: control, direction, zero width, surrogates."""
_REFERENCE = re.compile(r"<\d+>")
PLACEHOLDER = re.compile(r"<[^<>|\s]{1,30}>")


LoraTargets = Literal[
    "attention", "attention+geglu", "attention+ff", "attention+ff+conv", "all-linear", "kohya", "kohya+conv"
]
LoraKind = Literal["lora", "dora", "rslora", "lokr"]
OptimizerName = Literal["adamw", "adamw8bit", "prodigy", "adamw_schedule_free", "muon"]
ORIGINAL_TARGETS: LoraTargets = "attention+geglu"
"""What the original trainers taught, and all that the cloneofsimo format has numbers for."""
PRODIGY_RATE = 1.0
"""The default of all rates with Prodigy, which multiplies them by what it finds."""


class TrainConfig(BaseModel):
    """The inputs of a training, as given and validated; the fields are the form's, in its order.

    ``None`` means the default of the task or the base; :func:`resolve_config` fills it in.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Task = Field(
        "face", description="What the pictures show. Picks caption templates, rank, mirroring and the noise levels."
    )
    trigger: str = Field(
        "",
        max_length=60,
        description="Empty: one is chosen and reported. The plain word that calls the subject, in any tool.",
    )
    class_word: str = Field(
        "", max_length=60, description="The kind of thing it is, like dog. The new tokens start from this word."
    )
    seed: Int | None = Field(
        None,
        ge=0,
        le=2**32 - 1,
        description="Empty: random, and reported. The same seed gives the same file on the same machine.",
    )
    resolution: Int | None = Field(
        None,
        ge=16,
        le=2048,
        description="Empty: the base model's own (SD 1.5: 512). Side of the training pictures in pixels.",
    )
    max_train_steps_ti: Int = Field(
        700, ge=0, le=20000, description="Steps of stage 1, which learns new tokens. 0: only the trigger is taught."
    )
    max_train_steps_tuning: Int = Field(
        700, ge=0, le=20000, description="Steps of stage 2, which learns the LoRA. 0: only new tokens are learned."
    )
    learning_rate_ti: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Empty: the base model's own (SD 1.5: 5e-4). Learning rate of the new tokens in stage 1.",
    )
    learning_rate_text: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Empty: the base model's own (SD 1.5: 1e-5). Learning rate of the text encoder's LoRA.",
    )
    learning_rate_unet: float | None = Field(
        None, ge=0, le=1, description="Empty: the base model's own (SD 1.5: 2e-4). Learning rate of the UNet's LoRA."
    )
    optimizer: OptimizerName = Field(
        "adamw", description="prodigy finds the rates by itself; adamw8bit saves memory; muon is for the LoRA alone."
    )
    lr_scheduler: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"
    ] = Field("constant", description="How the learning rates change over the steps.")
    lr_warmup_steps: Int = Field(
        0, ge=0, le=10000, description="Steps over which the learning rates rise from 0 to their value."
    )
    lr_warmup_ratio: float = Field(
        0.0, ge=0, le=1, description="lr_warmup_steps as a share of each stage's steps; one of the two may be given."
    )
    lr_cycles: Int = Field(3, ge=1, le=100, description="How often cosine_with_restarts begins anew in a stage.")
    lr_power: float = Field(2.0, ge=0.1, le=10, description="Power of polynomial: 1 is linear, more falls sooner.")
    lora_rank: Int | None = Field(
        None, ge=1, le=128, description="Empty: 8 for objects, else 16. Rank of the LoRA: more holds more detail."
    )
    lora_alpha: float | None = Field(
        None,
        ge=0.001,
        le=1024,
        description="Empty: the rank, which every tool reads alike. The LoRA counts alpha / rank.",
    )
    lora_kind: LoraKind = Field(
        "lora",
        description="dora learns magnitudes apart, rslora counts alpha / √rank, lokr is small. lora is the fastest.",
    )
    lora_targets: LoraTargets = Field(
        "attention+geglu", description="The layers that learn; more hold more and make a larger file."
    )
    lora_plus_ratio: float = Field(
        1.0, ge=1, le=64, description="Learning rate of the LoRA's up matrices in those of the down ones (LoRA+)."
    )
    caption_mode: CaptionMode = Field(
        "auto",
        description="auto: text files beside the pictures, else templates. model: CAPTION_MODEL writes them.",
    )
    custom_prompts: str = Field(
        "",
        max_length=20000,
        description="Empty: the task's own. JSON list of caption templates with {} for the subject.",
    )
    shuffle_tags: bool = Field(False, description="Put a caption's comma-separated tags in a new order each step.")
    keep_tokens: Int = Field(
        1, ge=0, le=100, description="With shuffle_tags: how many tags at the front keep their place."
    )
    caption_dropout: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Empty: 0.1 for styles, else 0.05. Share of stage 2's steps without a caption.",
    )
    mask_mode: MaskMode = Field(
        "auto",
        description="What counts most in a picture. auto: a mask file, else the face for faces, else transparency.",
    )
    aspect_ratio_buckets: bool = Field(
        False, description="Keep the pictures' shapes instead of cropping them to squares."
    )
    color_jitter: bool | None = Field(None, description="Empty: no. Vary brightness, contrast and saturation a little.")
    flip: bool | None = Field(
        None, description="Empty: yes for objects and styles, else no. Mirror pictures at random."
    )
    train_batch_size: Int = Field(1, ge=1, le=64, description="Pictures per batch.")
    gradient_accumulation_steps: Int = Field(
        1, ge=1, le=64, description="Batches per step; a step counts once however many it has."
    )
    gradient_checkpointing: Literal["auto", "on", "off"] = Field(
        "auto", description="Save memory for about a third more time. auto: where it is needed."
    )
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = Field(
        "auto", description="auto: bf16 on a GPU that has it, fp16 on older ones, full precision on a CPU."
    )
    weight_decay_lora: float = Field(1e-3, ge=0, le=1, description="Weight decay of the LoRA.")
    weight_decay_ti: float = Field(0.0, ge=0, le=1, description="Weight decay of the new tokens.")
    max_grad_norm: float = Field(
        1.0, ge=0, le=1000, description="Gradients whose norm is larger are scaled down to it. 0: none are."
    )
    clip_by_group: bool = Field(
        False, description="Clip the gradients of UNet, text encoders and tokens apart, not as one."
    )
    ema_decay: float = Field(
        0.0, ge=0, le=0.9999, description="Decay of a running mean of what is learned, which is kept in place of it."
    )
    snr_gamma: float | None = Field(
        None, ge=0, le=100, description="Empty: 5. Gamma of the loss's min-SNR weighting; 0 turns it off."
    )
    noise_offset: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Empty: 0.03 for styles and locations, else 0. Helps with very dark and bright pictures.",
    )
    placeholder_tokens: str = Field(
        "<s1>|<s2>", max_length=200, description="Names of the new tokens, in angle brackets, split by |."
    )
    initializer_tokens: str = Field(
        "",
        max_length=200,
        description="Empty: class_word. Words the new tokens start from, split by |; the rest start random.",
    )
    continue_inversion: bool | None = Field(
        None, description="Empty: as suits the base model (SD 1.5: no). Go on learning the tokens in stage 2."
    )
    continue_inversion_lr: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Empty: the base model's own (SD 1.5: 1e-4). Learning rate of the tokens in stage 2.",
    )
    lora_format: Literal["kohya", "diffusers", "cloneofsimo"] = Field(
        "kohya", description="Format of the file; kohya is read by every tool."
    )

    GROUPS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Main": (
            "task", "trigger", "class_word", "seed", "resolution", "max_train_steps_ti", "max_train_steps_tuning",
            "learning_rate_unet", "lora_rank", "caption_mode",
        ),
        "Training": (
            "learning_rate_text", "learning_rate_ti", "train_batch_size", "gradient_accumulation_steps", "ema_decay",
        ),
        "LoRA": ("lora_alpha", "lora_kind", "lora_targets", "lora_plus_ratio", "weight_decay_lora"),
        "Optimizer": (
            "optimizer", "lr_scheduler", "lr_warmup_steps", "lr_warmup_ratio", "lr_cycles", "lr_power",
            "max_grad_norm", "clip_by_group",
        ),
        "Captions and pictures": (
            "custom_prompts", "caption_dropout", "shuffle_tags", "keep_tokens", "mask_mode", "aspect_ratio_buckets",
            "flip", "color_jitter",
        ),
        "Noise and loss": ("noise_offset", "snr_gamma"),
        "Memory and precision": ("gradient_checkpointing", "mixed_precision"),
        "Tokens": (
            "placeholder_tokens", "initializer_tokens", "continue_inversion", "continue_inversion_lr",
            "weight_decay_ti",
        ),
        "File": ("lora_format",),
    }  # fmt: skip
    """The fields by group, in the order of ``lora-service train --help``."""

    _whole_characters = field_validator("*", mode="before")(without_surrogates)

    @staticmethod
    def of(values: Mapping[str, Any]) -> TrainConfig:
        """Validate an entry's inputs.

        Raises:
            InputError: an input cannot be used.
        """
        return validate(TrainConfig, values)

    @model_validator(mode="after")
    def _some_steps(self) -> TrainConfig:
        if self.max_train_steps_ti == self.max_train_steps_tuning == 0:
            raise InputError(
                "max_train_steps_tuning", 0, "1 or more when max_train_steps_ti is 0 too: nothing would be taught"
            )
        return self

    @model_validator(mode="after")
    def _own_words(self) -> TrainConfig:
        """Check that the trigger is a word of its own, beside the new tokens."""
        reserved = (*self.placeholder_tokens.split("|"), SUBJECT, *_REFERENCE.findall(self.trigger))
        clash = next((text for text in reserved if text in self.trigger), "")
        if clash:
            expected = f"a plain word without {clash}, which stands for the new tokens or a LoRA"
            raise InputError("trigger", self.trigger, expected)
        if "|" in self.class_word:
            expected = "one word or name without |; initializer_tokens takes one for each new token"
            raise InputError("class_word", self.class_word, expected)
        return self

    @model_validator(mode="after")
    def _layers_fit(self) -> TrainConfig:
        """Check that the file's format holds the layers."""
        if self.lora_kind == "lokr" and self.lora_format != "kohya":
            raise InputError("lora_format", self.lora_format, "kohya, the only format of LoKr, with lora_kind lokr")
        if self.lora_format != "cloneofsimo":
            return self
        if self.lora_kind == "dora":
            raise InputError("lora_format", self.lora_format, "kohya or diffusers with lora_kind dora")
        if self.lora_targets != ORIGINAL_TARGETS:
            expected = f"{ORIGINAL_TARGETS} with lora_format cloneofsimo, which has no names for other layers"
            raise InputError("lora_targets", self.lora_targets, expected)
        return self

    @model_validator(mode="after")
    def _optimizer_fits(self) -> TrainConfig:
        """Check that the rates' inputs fit each other and the optimiser."""
        if self.lr_warmup_steps and self.lr_warmup_ratio:
            raise InputError("lr_warmup_ratio", self.lr_warmup_ratio, "0 beside lr_warmup_steps; give one of the two")
        if self.optimizer == "adamw_schedule_free":
            if not self.lr_scheduler.startswith("constant"):
                raise InputError("lr_scheduler", self.lr_scheduler, "constant with optimizer adamw_schedule_free")
            if self.ema_decay:
                expected = "0 with optimizer adamw_schedule_free, which keeps a mean already"
                raise InputError("ema_decay", self.ema_decay, expected)
        if self.lora_plus_ratio != 1:
            if self.optimizer == "prodigy":
                expected = "1 with optimizer prodigy, which finds the rates of a group as one"
                raise InputError("lora_plus_ratio", self.lora_plus_ratio, expected)
            if self.lora_kind == "lokr":
                raise InputError(
                    "lora_plus_ratio", self.lora_plus_ratio, "1 with lora_kind lokr, which has no up matrix"
                )
        return self

    @field_validator("trigger", "class_word")
    @classmethod
    def _stripped(cls, value: str) -> str:
        return " ".join(value.split())

    @field_validator("trigger", "class_word", "initializer_tokens", "placeholder_tokens")
    @classmethod
    def _visible(cls, value: str, info: ValidationInfo) -> str:
        hidden = next((each for each in value if unicodedata.category(each) in _INVISIBLE), "")
        if hidden:
            expected = f"typed without the invisible character U+{ord(hidden):04X}"
            raise InputError(info.field_name or "", value, expected, code="invisible_character")
        return value

    @field_validator("custom_prompts")
    @classmethod
    def _list_of_templates(cls, value: str) -> str:
        parse_prompts(value)
        return value

    @field_validator("placeholder_tokens")
    @classmethod
    def _token_names(cls, value: str) -> str:
        names = value.split("|")
        if not all(PLACEHOLDER.fullmatch(n) for n in names) or len(set(names)) != len(names):
            raise InputError(
                "placeholder_tokens", value, "different names in angle brackets split by |, like <s1>|<s2>"
            )
        return value

    def dataset_options(
        self,
        defaults: ModelDefaults,
        settings: Settings,
        *subject_texts: str,
        takes_folder_word: bool = False,
        token_window: TokenWindow | None = None,
    ) -> DatasetOptions:
        """Return the options for loading the pictures, on a base with ``defaults``.

        Args:
            subject_texts: texts that stand for the subject in caption files, besides those that always do.
            takes_folder_word: True if a folder's word may be the trigger, as nobody gave one.
            token_window: the tokens of a caption that the base reads.
        """
        return DatasetOptions(
            resolution=self.resolution or defaults.resolution,
            task=self.task,
            mask_mode=self.mask_mode,
            caption_mode=self.caption_mode,
            aspect_ratio_buckets=self.aspect_ratio_buckets,
            bucket_step=defaults.bucket_step,
            custom_prompts=self.templates,
            trigger_words=(*DEFAULT_TRIGGER_WORDS, *filter(None, subject_texts)),
            takes_folder_word=takes_folder_word,
            token_window=token_window,
            limits=UploadLimits.from_settings(settings),
            face_model=settings.face_model,
            caption_model=CaptionModelRef.from_settings(settings),
        )

    @property
    def templates(self) -> tuple[str, ...]:
        """The custom prompts; none: the task's own."""
        return parse_prompts(self.custom_prompts)


@dataclass(frozen=True)
class TaskDefaults:
    """Defaults of a task; ``timestep_bias`` is explained at :func:`lora_service.training.loss.sample_timesteps`."""

    lora_rank: int
    flip: bool
    noise_offset: float
    timestep_bias: float
    caption_dropout: float


TASKS: dict[str, TaskDefaults] = {
    "face": TaskDefaults(lora_rank=16, flip=False, noise_offset=0.0, timestep_bias=-0.3, caption_dropout=0.05),
    "object": TaskDefaults(lora_rank=8, flip=True, noise_offset=0.0, timestep_bias=-0.3, caption_dropout=0.05),
    "style": TaskDefaults(lora_rank=16, flip=True, noise_offset=0.03, timestep_bias=0.3, caption_dropout=0.1),
    "location": TaskDefaults(lora_rank=16, flip=False, noise_offset=0.03, timestep_bias=0.0, caption_dropout=0.05),
}


@dataclass(frozen=True)
class ResolvedConfig:
    """A config without ``None``, on a base.

    Attributes:
        tokens: names of the new tokens, none when stage 1 has no steps.
        initializers: the words that they start from, "" for a random start.
    """

    config: TrainConfig
    tokens: tuple[str, ...]
    initializers: tuple[str, ...]
    timestep_bias: float

    @property
    def trigger(self) -> str:
        """The trigger word; "" when there is no stage 2, which alone teaches it."""
        return self.config.trigger if self.config.max_train_steps_tuning else ""

    @property
    def subject_text(self) -> str:
        """The text that stands for the subject in captions: the new tokens, or the trigger where there are none."""
        return "".join(self.tokens) or self.trigger

    def describe_defaults(self, config: TrainConfig) -> str:
        """List the values of the inputs that ``config`` left open."""
        values = self.config.model_dump()
        return ", ".join(
            f"{name} {values[name]}" for name, value in config.model_dump().items() if value != values[name]
        )

    @property
    def prompt(self) -> str:
        """A prompt to start with, for our own inference."""
        return self.prompt_with("<1>")

    def prompt_with(self, subject: str) -> str:
        """Return a prompt to start with that calls the subject ``subject``."""
        return f"a picture in the style of {subject}" if self.config.task == "style" else f"a photo of {subject}"

    def as_json(self) -> dict[str, object]:
        """Return the resolved settings, without the user's captions."""
        return self.config.model_dump(exclude={"custom_prompts"})


def resolve_config(config: TrainConfig, defaults: ModelDefaults, trigger: str, seed: int) -> ResolvedConfig:
    """Resolve ``config`` on a base with ``defaults``; ``trigger`` and ``seed`` are taken where it has none.

    Raises:
        InputError: the inputs do not fit together.
    """
    task = TASKS[config.task]
    rank = config.lora_rank or task.lora_rank
    values: dict[str, Any] = {
        "trigger": trigger,
        "seed": seed,
        "resolution": defaults.resolution,
        "learning_rate_ti": defaults.learning_rate_ti,
        "learning_rate_text": defaults.learning_rate_text,
        "learning_rate_unet": defaults.learning_rate_unet,
        "lora_rank": rank,
        "lora_alpha": float(rank),
        "caption_dropout": task.caption_dropout,
        "color_jitter": False,
        "flip": task.flip,
        "snr_gamma": 5.0,
        "noise_offset": task.noise_offset,
        "continue_inversion": defaults.continue_inversion,
        "continue_inversion_lr": defaults.continue_inversion_lr,
    }
    if config.optimizer == "prodigy":
        rates = ("learning_rate_ti", "learning_rate_text", "learning_rate_unet", "continue_inversion_lr")
        values |= dict.fromkeys(rates, PRODIGY_RATE)
    if config.lr_scheduler == "constant" and (config.lr_warmup_steps or config.lr_warmup_ratio):
        # "constant" itself has no warm-up.
        config = config.model_copy(update={"lr_scheduler": "constant_with_warmup"})
    config = config.model_copy(update={k: v for k, v in values.items() if getattr(config, k) in (None, "")})
    _check_something_is_taught(config)
    names = tuple(config.placeholder_tokens.split("|")) if config.max_train_steps_ti else ()
    words = tuple(w.strip() for w in (config.initializer_tokens.strip() or config.class_word).split("|"))
    if names and len(words) > len(names):
        expected = f"at most {len(names)} words split by |, one for each of {config.placeholder_tokens}"
        raise InputError("initializer_tokens", config.initializer_tokens, expected)
    if config.initializer_tokens.strip() and not names:
        raise InputError(
            "initializer_tokens", config.initializer_tokens, "empty when max_train_steps_ti is 0: no token is new"
        )
    return ResolvedConfig(config, names, words, task.timestep_bias)


def _check_something_is_taught(config: TrainConfig) -> None:
    """Check that no stage runs for nothing.

    Raises:
        InputError: one does (code ``teaches_nothing``).
    """
    if config.max_train_steps_ti and not config.learning_rate_ti:
        expected = "above 0: stage 1 would teach nothing; max_train_steps_ti 0 leaves it out"
        raise InputError("learning_rate_ti", config.learning_rate_ti, expected, code="teaches_nothing")
    if not config.max_train_steps_tuning:
        return
    if not config.learning_rate_unet and not config.learning_rate_text:
        expected = "above 0 when learning_rate_text is 0 too: stage 2 would teach nothing"
        raise InputError("learning_rate_unet", config.learning_rate_unet, expected, code="teaches_nothing")
    if config.caption_dropout == 1:
        expected = "below 1: without any caption, no word would call what is taught"
        raise InputError("caption_dropout", config.caption_dropout, expected, code="teaches_nothing")


def warmup_steps(warmup: int, steps: int) -> int:
    """Return the warm-up of a stage of ``steps`` steps: ``warmup``, but half the steps if it would last all of them.

    The first step of a warm-up has a rate of 0, so one as long as the stage never reaches the rates, and teaches
    nothing where the stage has one step.
    """
    return warmup if warmup < steps else steps // 2


def warmup_of_stage(config: TrainConfig, steps: int) -> int:
    """Return the warm-up of a stage of ``steps`` steps, by ``lr_warmup_steps`` or ``lr_warmup_ratio``."""
    return warmup_steps(config.lr_warmup_steps or round(config.lr_warmup_ratio * steps), steps)


def with_trigger(config: TrainConfig, trigger: str, seed: int | None) -> TrainConfig:
    """Return ``config`` with the trigger word that its pictures' folder has, and the seed that was drawn already.

    Raises:
        InputError: the word cannot be a trigger.
    """
    return TrainConfig.of(config.model_dump() | {"trigger": trigger, "seed": seed})
