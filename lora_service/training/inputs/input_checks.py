"""Checks of a training's inputs beside the limits of each: those that must fit each other, and lists in texts."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from lora_service.dataset.options import SUBJECT
from lora_service.errors import InputError

if TYPE_CHECKING:
    from lora_service.training.inputs.config import LoraTargets, TrainConfig

MOST_SAMPLE_PROMPTS, _LONGEST_SAMPLE_PROMPT = 16, 1000
_REFERENCE = re.compile(r"<\d+>")
ORIGINAL_TARGETS: LoraTargets = "attention+geglu"
"""The layers that the original trainers taught, and all that the cloneofsimo format has numbers for."""


def check_combinations(config: TrainConfig) -> None:
    """Check that the inputs fit each other.

    Raises:
        InputError: two of them do not.
    """
    for check in (_some_steps, _own_words, _class_is_not_the_subject, _layers_fit, _optimizer_fits):
        check(config)


def _some_steps(config: TrainConfig) -> None:
    if config.max_train_steps_ti == config.max_train_steps_tuning == 0:
        raise InputError(
            "max_train_steps_tuning", 0, "1 or more when max_train_steps_ti is 0 too: nothing would be taught"
        )


def _own_words(config: TrainConfig) -> None:
    """Check that the trigger is a word of its own, beside the new tokens."""
    reserved = (*config.placeholder_tokens.split("|"), SUBJECT, *_REFERENCE.findall(config.trigger))
    clash = next((text for text in reserved if text in config.trigger), "")
    if clash:
        expected = f"a plain word without {clash}, which stands for the new tokens or a LoRA"
        raise InputError("trigger", config.trigger, expected)
    if "|" in config.class_word:
        expected = "one word or name without |; initializer_tokens takes one for each new token"
        raise InputError("class_word", config.class_word, expected)


def _class_is_not_the_subject(config: TrainConfig) -> None:
    """Check that what is preserved is not what is taught."""
    if config.preservation == "output" and not config.class_word:
        expected = "the kind of thing the subject is, like dog: preservation 'output' keeps what the base draws of it"
        raise InputError("class_word", "", expected, code="class_word_needed")
    if config.preservation == "prior" and not config.class_word and not config.class_prompt and config.task != "style":
        expected = "the kind of thing the subject is, like dog: preservation 'prior' keeps it; or give class_prompt"
        raise InputError("class_word", "", expected, code="class_word_needed")
    names = {"output": ("class_word",), "prior": ("class_word", "class_prompt"), "none": ()}[config.preservation]
    for name in names:
        value = getattr(config, name)
        if config.trigger and re.search(rf"(?<!\w){re.escape(config.trigger)}(?!\w)", value, re.IGNORECASE):
            expected = f"without the trigger {config.trigger!r}: what calls the subject cannot be kept as it was"
            raise InputError(name, value, expected, code="preserves_the_subject")


def _layers_fit(config: TrainConfig) -> None:
    """Check that the file's format holds the layers, and that they can go on from a LoRA's."""
    if config.start_from.strip() and config.lora_kind != "lora":
        expected = "lora with start_from, whose layers go on as they are"
        raise InputError("lora_kind", config.lora_kind, expected, code="cannot_go_on")
    if config.lora_kind == "lokr" and config.lora_format != "kohya":
        raise InputError("lora_format", config.lora_format, "kohya, the only format of LoKr, with lora_kind lokr")
    if config.lora_format != "cloneofsimo":
        return
    if config.lora_kind == "dora":
        raise InputError("lora_format", config.lora_format, "kohya or diffusers with lora_kind dora")
    if config.lora_targets != ORIGINAL_TARGETS:
        expected = f"{ORIGINAL_TARGETS} with lora_format cloneofsimo, which has no names for other layers"
        raise InputError("lora_targets", config.lora_targets, expected)


def _optimizer_fits(config: TrainConfig) -> None:
    """Check that the rates' inputs fit each other and the optimiser."""
    if config.lr_warmup_steps and config.lr_warmup_ratio:
        raise InputError("lr_warmup_ratio", config.lr_warmup_ratio, "0 beside lr_warmup_steps; give one of the two")
    if config.optimizer == "adamw_schedule_free":
        if not config.lr_scheduler.startswith("constant"):
            raise InputError("lr_scheduler", config.lr_scheduler, "constant with optimizer adamw_schedule_free")
        if config.ema_decay:
            expected = "0 with optimizer adamw_schedule_free, which keeps a mean already"
            raise InputError("ema_decay", config.ema_decay, expected)
    if config.lora_plus_ratio != 1:
        if config.optimizer == "prodigy":
            expected = "1 with optimizer prodigy, which finds the rates of a group as one"
            raise InputError("lora_plus_ratio", config.lora_plus_ratio, expected)
        if config.lora_kind == "lokr":
            raise InputError("lora_plus_ratio", config.lora_plus_ratio, "1 with lora_kind lokr, which has no up matrix")


def parse_sample_prompts(text: str) -> tuple[str, ...]:
    """Return the prompts in the input ``sample_prompts``, with ``{}`` for ``<1>``; none where there are none.

    Raises:
        InputError: there are too many, one is too long, or one names another LoRA than this.
    """
    prompts = tuple(prompt.replace("<1>", SUBJECT) for prompt in _lines_or_json(text))
    if len(prompts) > MOST_SAMPLE_PROMPTS:
        raise InputError("sample_prompts", text, f"at most {MOST_SAMPLE_PROMPTS} prompts, not {len(prompts)}")
    for prompt in prompts:
        if len(prompt) > _LONGEST_SAMPLE_PROMPT or _REFERENCE.search(prompt):
            expected = (
                f"of at most {_LONGEST_SAMPLE_PROMPT} characters, with {{}} or <1> for the subject and no other LoRA"
            )
            raise InputError("sample_prompts", prompt, expected)
    return prompts


def _lines_or_json(text: str) -> list[str]:
    """Return the texts of a JSON list, or the lines of any other text; empty ones are left out."""
    if not text.lstrip().startswith("["):
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        texts = json.loads(text)
    except ValueError:
        texts = None
    if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
        raise InputError("sample_prompts", text, """one prompt per line, or a JSON list like '["a photo of {}"]'""")
    return [each.strip() for each in texts if each.strip()]
