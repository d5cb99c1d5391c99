"""What a user asks of a training, and what it becomes on a given base."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lora_service.dataset.captions.templates import parse_prompts
from lora_service.dataset.choices import CaptionMode, MaskMode, Task
from lora_service.errors import InputError
from lora_service.models.registry import ModelDefaults
from lora_service.validation import Int, first_error

PLACEHOLDER = re.compile(r"<[^<>|\s]{1,30}>")


class TrainConfig(BaseModel):
    """The inputs of a training, as given and validated; the fields are the form's, in its order.

    ``None`` means "what suits the task or the base": :func:`resolve_config` says what it became.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Task = Field("face", description="What is taught: a face, an object, a style or a location.")
    trigger: str = Field("", max_length=60, description="The plain word that also calls the subject, in any tool.")
    class_word: str = Field(
        "", max_length=60, description="What kind of thing it is, like dog; the tokens start there."
    )
    seed: Int | None = Field(None, ge=0, le=2**32 - 1, description="The same seed gives the same file.")
    resolution: Int | None = Field(None, ge=16, le=2048, description="Side of the training pictures in pixels.")
    max_train_steps_ti: Int = Field(700, ge=0, le=20000, description="Steps of stage 1, which learns the tokens.")
    max_train_steps_tuning: Int = Field(700, ge=0, le=20000, description="Steps of stage 2, which learns the LoRA.")
    learning_rate_ti: float | None = Field(None, ge=0, le=1, description="Rate of the tokens.")
    learning_rate_text: float | None = Field(None, ge=0, le=1, description="Rate of the text encoder's LoRA.")
    learning_rate_unet: float | None = Field(None, ge=0, le=1, description="Rate of the UNet's LoRA.")
    lr_scheduler: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"
    ] = Field("constant", description="How the rates change over the steps.")
    lr_warmup_steps: Int = Field(0, ge=0, le=10000, description="Steps over which the rates rise from 0.")
    lora_rank: Int | None = Field(None, ge=1, le=128, description="Rank of the LoRA.")
    lora_alpha: float | None = Field(None, gt=0, le=1024, description="The change is alpha / rank · up · down.")
    caption_mode: CaptionMode = Field("auto", description="Where captions come from.")
    custom_prompts: str = Field("", max_length=20000, description="JSON list of captions with {} for the subject.")
    shuffle_tags: bool = Field(False, description="Draw comma-separated tags in a new order each step.")
    keep_tokens: Int = Field(1, ge=0, le=100, description="So many tags at the front stay in place.")
    caption_dropout: float | None = Field(None, ge=0, le=1, description="Share of steps without a caption.")
    mask_mode: MaskMode = Field("auto", description="What weights the loss.")
    aspect_ratio_buckets: bool = Field(False, description="Keep each picture's shape instead of cropping squares.")
    color_jitter: bool | None = Field(None, description="Vary brightness, contrast and saturation a little.")
    flip: bool | None = Field(None, description="Mirror pictures at random.")
    train_batch_size: Int = Field(1, ge=1, le=64, description="Pictures per step.")
    gradient_accumulation_steps: Int = Field(1, ge=1, le=64, description="Batches per optimiser step.")
    gradient_checkpointing: Literal["auto", "on", "off"] = Field("auto", description="Less memory for more time.")
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = Field("auto", description="What is computed in.")
    weight_decay_lora: float = Field(1e-3, ge=0, le=1, description="Weight decay of the LoRA.")
    weight_decay_ti: float = Field(0.0, ge=0, le=1, description="Weight decay of the tokens.")
    snr_gamma: float | None = Field(None, ge=0, le=100, description="min-SNR-γ; 0 turns it off.")
    noise_offset: float | None = Field(None, ge=0, le=1, description="Helps very dark and very bright pictures.")
    placeholder_tokens: str = Field("<s1>|<s2>", max_length=200, description="Names of the new tokens, split by |.")
    initializer_tokens: str = Field("", max_length=200, description="Words the new tokens start from, split by |.")
    continue_inversion: bool | None = Field(None, description="Go on learning the tokens in stage 2.")
    continue_inversion_lr: float | None = Field(None, ge=0, le=1, description="Rate of the tokens in stage 2.")
    lora_format: Literal["kohya", "diffusers", "cloneofsimo"] = Field("kohya", description="Layout of the file.")

    @staticmethod
    def of(values: dict[str, Any]) -> TrainConfig:
        """A config from an entry's inputs.

        Raises:
            InputError: an input cannot be used; its name, its value and what would work are said.
        """
        try:
            return TrainConfig(**values)
        except ValidationError as error:
            raise first_error(error) from error

    @model_validator(mode="after")
    def _some_steps(self) -> TrainConfig:
        if self.max_train_steps_ti == self.max_train_steps_tuning == 0:
            raise InputError(
                "max_train_steps_tuning", 0, "1 or more when max_train_steps_ti is 0 too: nothing would be taught"
            )
        return self

    @field_validator("trigger", "class_word")
    @classmethod
    def _stripped(cls, value: str) -> str:
        return " ".join(value.split())

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

    @property
    def templates(self) -> tuple[str, ...]:
        """The custom prompts; empty: the task's own."""
        return parse_prompts(self.custom_prompts)


@dataclass(frozen=True)
class TaskDefaults:
    """What suits a task; ``timestep_bias`` is explained at :func:`loss.sample_timesteps`."""

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
    """A training with nothing left open: every number as it will be used.

    ``config`` holds no ``None`` any more; ``tokens`` are the new tokens' names
    (none when stage 1 has no steps); ``initializers`` the words they start from,
    "" for a random start.
    """

    config: TrainConfig
    tokens: tuple[str, ...]
    initializers: tuple[str, ...]
    timestep_bias: float

    @property
    def trigger(self) -> str:
        """The plain word; "" when there is no stage 2, which alone teaches it."""
        return self.config.trigger if self.config.max_train_steps_tuning else ""

    @property
    def subject_text(self) -> str:
        """How captions spell the learned tokens, or the trigger where there are none."""
        return "".join(self.tokens) or self.trigger

    def describe_defaults(self, asked: TrainConfig) -> str:
        """What the inputs that ``asked`` left open became."""
        became = self.config.model_dump()
        return ", ".join(
            f"{name} {became[name]}" for name, given in asked.model_dump().items() if given != became[name]
        )

    @property
    def prompt(self) -> str:
        """A prompt to start with, for our own inference."""
        return self.prompt_with("<1>")

    def prompt_with(self, subject: str) -> str:
        """A prompt to start with that calls the subject ``subject``."""
        return f"a picture in the style of {subject}" if self.config.task == "style" else f"a photo of {subject}"

    def as_json(self) -> dict[str, object]:
        """The settings as they became."""
        return self.config.model_dump(exclude={"custom_prompts"})


def resolve_config(config: TrainConfig, defaults: ModelDefaults, trigger: str, seed: int) -> ResolvedConfig:
    """``config`` on a base with ``defaults``: whatever was left open is resolved here.

    Raises:
        InputError: the inputs do not fit together.
    """
    task = TASKS[config.task]
    rank = config.lora_rank or task.lora_rank
    resolved: dict[str, Any] = {
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
    if config.lr_scheduler == "constant" and config.lr_warmup_steps:
        config = config.model_copy(
            update={"lr_scheduler": "constant_with_warmup"}
        )  # "constant" itself knows no warm-up
    left_open = {k: v for k, v in resolved.items() if getattr(config, k) in (None, "")}
    whole = config.model_copy(update=left_open)
    if whole.max_train_steps_tuning and not whole.learning_rate_unet and not whole.learning_rate_text:
        wanted = "above 0 when learning_rate_text is 0 too: stage 2 would teach nothing"
        raise InputError("learning_rate_unet", whole.learning_rate_unet, wanted)
    names = tuple(config.placeholder_tokens.split("|")) if config.max_train_steps_ti else ()
    words = tuple(w.strip() for w in (config.initializer_tokens.strip() or config.class_word).split("|"))
    if names and len(words) > len(names):
        wanted = f"at most {len(names)} words split by |, one for each of {config.placeholder_tokens}"
        raise InputError("initializer_tokens", config.initializer_tokens, wanted)
    if config.initializer_tokens.strip() and not names:
        raise InputError(
            "initializer_tokens", config.initializer_tokens, "empty when max_train_steps_ti is 0: no token is new"
        )
    return ResolvedConfig(whole, names, words, task.timestep_bias)
