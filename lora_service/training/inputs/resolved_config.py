"""The inputs of a training as they will be used on a base: every number, and what is taught."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, repeat
from typing import Any

from lora_service.errors import InputError
from lora_service.models.defaults import ModelDefaults
from lora_service.training.inputs.config import CLASS_IMAGES, PRODIGY_RATE, TrainConfig


@dataclass(frozen=True)
class TaskDefaults:
    """Defaults of a task; ``timestep_bias`` is that of :func:`~lora_service.training.losses.loss.sample_timesteps`."""

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
class FastPreset:
    """The changes that ``preset`` ``fast`` makes to a config; docs/recipe.md has the trainings it was chosen by.

    There is no stage 1: the trigger alone calls the subject, and all captions of stage 2 teach it.

    Attributes:
        share: of stage 2's steps, one step at least.
        batch_size: the pictures of a batch, where fewer are asked for.
        unet, text: what the base's learning rates are multiplied by, where none are given.
    """

    share: float = 0.28
    batch_size: int = 2
    unet: float = 1.5
    text: float = 0.5

    def steps(self, config: TrainConfig) -> dict[str, Any]:
        """Return the steps and the batch that take the place of those of ``config``."""
        if not config.max_train_steps_tuning:
            raise InputError("preset", config.preset, "full when max_train_steps_tuning is 0: fast has no stage 1")
        return {
            "max_train_steps_ti": 0,
            "max_train_steps_tuning": max(1, round(self.share * config.max_train_steps_tuning)),
            "train_batch_size": max(self.batch_size, config.train_batch_size),
        }

    def rates(self, defaults: ModelDefaults) -> dict[str, float]:
        """Return the learning rates that take the place of those of ``defaults``."""
        return {
            "learning_rate_unet": self.unet * defaults.learning_rate_unet,
            "learning_rate_text": self.text * defaults.learning_rate_text,
        }


FAST = FastPreset()


@dataclass(frozen=True)
class TaughtSubject:
    """One of the things that a training teaches.

    Attributes:
        trigger: its trigger word; "" when there is no stage 2, which alone teaches it.
        tokens: names of its new tokens, none when stage 1 has no steps.
        initializers: the words that they start from, "" for a random start; those that are missing are "".
    """

    trigger: str
    tokens: tuple[str, ...]
    initializers: tuple[str, ...]

    @property
    def text(self) -> str:
        """The text that stands for it in captions: the new tokens, or the trigger where there are none."""
        return "".join(self.tokens) or self.trigger


@dataclass(frozen=True)
class ResolvedConfig:
    """A config without ``None``, on a base, and the subjects that it teaches, mostly one.

    A ``clip_skip`` of ``None`` stays: the text encoders know their own layer.
    """

    config: TrainConfig
    subjects: tuple[TaughtSubject, ...]
    timestep_bias: float

    @property
    def trigger(self) -> str:
        """The first subject's trigger word."""
        return self.subjects[0].trigger

    @property
    def subject_text(self) -> str:
        """The text that stands for the first subject in captions."""
        return self.subjects[0].text

    @property
    def tokens(self) -> tuple[str, ...]:
        """Names of the new tokens of all subjects."""
        return tuple(token for subject in self.subjects for token in subject.tokens)

    @property
    def plain_words(self) -> dict[str, str]:
        """The trigger word of each token's subject, "" without one: what encoders read that know no new tokens."""
        return {token: subject.trigger for subject in self.subjects for token in subject.tokens}

    @property
    def initializers(self) -> tuple[str, ...]:
        """The words that :attr:`tokens` start from, "" for a random start."""
        return tuple(
            word
            for subject in self.subjects
            for _, word in zip(subject.tokens, chain(subject.initializers, repeat("")), strict=False)
        )

    def without_stage_2(self) -> ResolvedConfig:
        """Return the config of a training that ended before stage 2, which alone teaches trigger words."""
        config = self.config.model_copy(update={"max_train_steps_tuning": 0})
        return replace(self, config=config, subjects=tuple(replace(each, trigger="") for each in self.subjects))

    @property
    def title(self) -> str:
        """A name of the LoRA, unique per training: A1111 calls a LoRA by its title."""
        return f"{(self.trigger or self.config.task).replace(' ', '-')}-{self.config.seed or 0:08x}"

    @property
    def preservation(self) -> str:
        """The input of that name; "none" when there is no stage 2: stage 1 changes nothing of the base."""
        return self.config.preservation if self.config.max_train_steps_tuning else "none"

    @property
    def class_prompts(self) -> tuple[str, ...]:
        """The prompts of the class pictures."""
        return tuple(self.config.class_prompt.split("|"))

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
        """Return the resolved settings, without the user's captions, prompts and links."""
        return self.config.model_dump(exclude={"custom_prompts", "captions", "sample_prompts", "start_from"})


def resolve_config(
    config: TrainConfig, defaults: ModelDefaults, trigger: str, seed: int, more_triggers: Sequence[str] = ()
) -> ResolvedConfig:
    """Resolve ``config`` on a base with ``defaults``; ``trigger`` and ``seed`` are taken where it has none.

    Args:
        more_triggers: those of the subjects after the first, where several are taught.

    Raises:
        InputError: the inputs do not fit together.
    """
    task = TASKS[config.task]
    rank = config.lora_rank or task.lora_rank
    rate = defaults.style_rate if config.task == "style" else 1.0
    values: dict[str, Any] = {
        "trigger": trigger,
        "seed": seed,
        "resolution": defaults.resolution,
        "learning_rate_ti": defaults.learning_rate_ti,
        "learning_rate_text": rate * defaults.learning_rate_text,
        "learning_rate_unet": rate * defaults.learning_rate_unet,
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
    if config.preset == "fast":
        values |= FAST.rates(defaults)
        config = config.model_copy(update=FAST.steps(config))
    if config.preservation != "none":
        values["preservation_weight"] = 1.0
    if config.preservation == "prior":
        values |= {"class_prompt": _class_prompt(config), "num_class_images": CLASS_IMAGES}
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
        expected = "empty where there is no stage 1 (max_train_steps_ti 0, or preset fast): no token is new"
        raise InputError("initializer_tokens", config.initializer_tokens, expected)
    return ResolvedConfig(config, _subjects(config, names, words, more_triggers), task.timestep_bias)


def _subjects(
    config: TrainConfig, names: tuple[str, ...], words: tuple[str, ...], more_triggers: Sequence[str]
) -> tuple[TaughtSubject, ...]:
    """Return the subjects, each with as many tokens as the first.

    Of several, each starts from the class in its own trigger, "dog" of "zwx dog", unless the inputs name another.
    """
    triggers = (config.trigger, *more_triggers)
    subjects = []
    for number, trigger in enumerate(triggers):
        initializers = words
        if more_triggers and not any(words):
            initializers = (trigger.partition(" ")[2],)
        tokens = tuple(_token_name(name, number, len(names)) for name in names)
        subjects.append(TaughtSubject(trigger if config.max_train_steps_tuning else "", tokens, initializers))
    all_tokens = [token for subject in subjects for token in subject.tokens]
    if len(set(all_tokens)) < len(all_tokens):
        expected = f"names that differ for {len(triggers)} subjects, like <s1>|<s2>, whose second's are <s3>|<s4>"
        raise InputError("placeholder_tokens", config.placeholder_tokens, expected)
    return tuple(subjects)


def _token_name(name: str, number: int, count: int) -> str:
    """Return the name of a token of subject ``number``: <s1> goes on as <s3> after two names, and <dog> as <dog-2>."""
    if not number:
        return name
    numbered = re.fullmatch(r"<(.*?)(\d{1,9})>", name)
    return f"<{numbered[1]}{int(numbered[2]) + number * count}>" if numbered else f"{name[:-1]}-{number + 1}>"


def _class_prompt(config: TrainConfig) -> str:
    """Return the prompt of class pictures; a style's class is pictures of any other style."""
    if config.task == "style":
        return f"a {config.class_word}" if config.class_word else "a picture"
    return f"a photo of a {config.class_word}"


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
