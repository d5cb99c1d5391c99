"""The inputs of a training, as they are given."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from lora_service.dataset.options import (
    DEFAULT_TRIGGER_WORDS,
    SUBJECT,
    CaptionMode,
    CaptionModelRef,
    DatasetOptions,
    MaskMode,
    Task,
    UploadLimits,
    parse_captions,
    parse_prompts,
)
from lora_service.errors import InputError
from lora_service.models.defaults import ModelDefaults
from lora_service.settings import Settings
from lora_service.training.inputs.input_checks import check_combinations, parse_sample_prompts
from lora_service.validation import Int, validate, without_surrogates

if TYPE_CHECKING:
    from lora_service.dataset.captions.token_window import TokenWindow

_INVISIBLE = {"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"}
"""Unicode categories of characters that nobody sees and nobody can type: control, direction, zero width, surrogates."""
CLASS_IMAGES = 100
"""Class pictures that are drawn where no number is given; DreamBooth's authors took 100 to 200."""
PLACEHOLDER = re.compile(r"<[^<>|\s]{1,30}>")


LoraTargets = Literal[
    "attention", "attention+geglu", "attention+ff", "attention+ff+conv", "all-linear", "kohya", "kohya+conv"
]
LoraKind = Literal["lora", "dora", "rslora", "lokr"]
TimestepSampling = Literal["auto", "logit_normal", "uniform", "cubic", "mode"]
OptimizerName = Literal["adamw", "adamw8bit", "prodigy", "adamw_schedule_free", "muon"]
PRODIGY_RATE = 1.0
"""The default of all rates with Prodigy, which multiplies them by what it finds."""


class TrainConfig(BaseModel):
    """The inputs of a training, as given and validated; the fields are the form's, in its order.

    ``None`` means the default of the task or the base, which
    :func:`~lora_service.training.inputs.resolved_config.resolve_config` fills in.
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
    more_resolutions: str = Field(
        "",
        max_length=60,
        description="Further sides in pixels, split by commas: every picture is taught at each of them too.",
    )
    max_train_steps_ti: Int = Field(
        700,
        ge=0,
        le=20000,
        description="Steps of stage 1, which learns new tokens on bases with a CLIP. 0: only the trigger is taught.",
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
    captions: str = Field(
        "",
        max_length=1_000_000,
        description='Captions of single pictures in place of their own: a JSON object like {"1.jpg": "{} at sea"}.',
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
    max_token_length: Literal["auto", "75", "150", "225"] = Field(
        "auto",
        description="Most tokens of a caption that are read, in chunks of 75. auto: as many as captions need.",
    )
    clip_skip: Int | None = Field(
        None,
        ge=1,
        le=32,
        description="Empty: the base model's own. Layer of the text encoder that is read, from the end; 1: the last.",
    )
    mask_mode: MaskMode = Field(
        "auto",
        description="What counts most in a picture. auto: a mask file, else the face for faces, else transparency.",
    )
    aspect_ratio_buckets: bool = Field(
        False, description="Keep the pictures' shapes instead of cropping them to squares."
    )
    random_crop: bool = Field(False, description="Eight random crops of each picture instead of one.")
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
    timestep_sampling: TimestepSampling = Field(
        "auto", description="For bases of flow matching: how noise levels are drawn. auto: logit_normal."
    )
    preservation: Literal["none", "prior", "output"] = Field(
        "none",
        description="Keep what the base knows of the class: prior, by class pictures; output, by what it predicts.",
    )
    preservation_weight: float | None = Field(
        None, ge=0.001, le=100, description="Empty: 1. How much the class counts beside the subject."
    )
    class_prompt: str = Field(
        "",
        max_length=2000,
        description="Empty: a photo of a CLASS_WORD. What the class pictures show; several split by |.",
    )
    num_class_images: Int | None = Field(
        None, ge=1, le=2000, description="Empty: 100. Class pictures that the base draws where none are given."
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
    start_from: str = Field(
        "",
        max_length=4000,
        description="Empty: a new LoRA. Link to a LoRA file to go on from; its layers, tokens and trigger are kept.",
    )
    stop_after_seconds: Int = Field(
        0, ge=0, le=604800, description="0: no limit. The file is written within so many seconds of the job's start."
    )
    samples: Int | None = Field(
        None,
        ge=0,
        le=100,
        description="Empty: 4 or 1, in a tenth of the time at most. How often samples are drawn; 0: never.",
    )
    sample_prompts: str = Field(
        "",
        max_length=20000,
        description="Empty: the task's own. Prompts of the samples, one per line or a JSON list; {} is the subject.",
    )
    preset: Literal["full", "fast"] = Field(
        "full",
        description="full: as asked for. fast: a third of the time, without stage 1, by fewer steps of two pictures.",
    )
    keep: Literal["last", "best"] = Field(
        "last", description="The step of stage 2 that is returned: the last, or the one of the lowest held-out loss."
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
            "custom_prompts", "captions", "caption_dropout", "shuffle_tags", "keep_tokens", "max_token_length",
            "clip_skip", "mask_mode", "aspect_ratio_buckets", "more_resolutions", "random_crop", "flip", "color_jitter",
        ),
        "Noise and loss": ("noise_offset", "snr_gamma", "timestep_sampling"),
        "Preservation": ("preservation", "preservation_weight", "class_prompt", "num_class_images"),
        "Memory and precision": ("gradient_checkpointing", "mixed_precision"),
        "Tokens": (
            "placeholder_tokens", "initializer_tokens", "continue_inversion", "continue_inversion_lr",
            "weight_decay_ti",
        ),
        "Going on and stopping": ("start_from", "stop_after_seconds"),
        "Seeing it learn": ("samples", "sample_prompts", "preset", "keep"),
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
    def _inputs_fit_each_other(self) -> TrainConfig:
        check_combinations(self)
        return self

    @field_validator("class_prompt")
    @classmethod
    def _plain_prompts(cls, value: str) -> str:
        prompts = [" ".join(prompt.split()) for prompt in value.split("|")]
        if SUBJECT in value or (value.strip() and not all(prompts)):
            raise InputError("class_prompt", value, "prompts without {} split by |, like 'a photo of a dog'")
        return "|".join(prompts)

    @field_validator("trigger", "class_word")
    @classmethod
    def _stripped(cls, value: str) -> str:
        return " ".join(value.split())

    @field_validator("trigger", "class_word", "class_prompt", "initializer_tokens", "placeholder_tokens")
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

    @field_validator("captions")
    @classmethod
    def _captions_by_name(cls, value: str) -> str:
        parse_captions(value)
        return value

    @field_validator("sample_prompts")
    @classmethod
    def _list_of_prompts(cls, value: str) -> str:
        parse_sample_prompts(value)
        return value

    @field_validator("more_resolutions")
    @classmethod
    def _list_of_sides(cls, value: str) -> str:
        sides = [side.strip() for side in value.split(",")] if value.strip() else []
        if not all(re.fullmatch(r"\d{2,4}", side) and 16 <= int(side) <= 2048 for side in sides):
            raise InputError("more_resolutions", value, "numbers from 16 to 2048 split by commas, like 768,1024")
        return ",".join(sides)

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
            more_resolutions=self.resolutions(defaults)[1:],
            task=self.task,
            mask_mode=self.mask_mode,
            caption_mode=self.caption_mode,
            aspect_ratio_buckets=self.aspect_ratio_buckets,
            random_crop=self.random_crop,
            bucket_step=defaults.bucket_step,
            custom_prompts=self.templates,
            captions=parse_captions(self.captions),
            trigger_words=(*DEFAULT_TRIGGER_WORDS, *filter(None, subject_texts)),
            takes_folder_word=takes_folder_word,
            token_window=token_window,
            limits=UploadLimits.from_settings(settings),
            face_model=settings.face_model,
            caption_model=CaptionModelRef.from_settings(settings),
        )

    def resolutions(self, defaults: ModelDefaults) -> tuple[int, ...]:
        """Return the sides in pixels that every picture is taught at, ``resolution`` first, on a base with
        ``defaults``."""
        sides = (self.resolution or defaults.resolution, *map(int, filter(None, self.more_resolutions.split(","))))
        return tuple(dict.fromkeys(sides))

    @property
    def chunks(self) -> int:
        """The most chunks of a caption that are read, 1 to 3."""
        return 3 if self.max_token_length == "auto" else int(self.max_token_length) // 75

    @property
    def templates(self) -> tuple[str, ...]:
        """The custom prompts; none: the task's own."""
        return parse_prompts(self.custom_prompts)

    @property
    def prompts_of_samples(self) -> tuple[str, ...]:
        """The user's prompts of the samples, with ``{}`` for the subject; none: the task's own."""
        return parse_sample_prompts(self.sample_prompts)
