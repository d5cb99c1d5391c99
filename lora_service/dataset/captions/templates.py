"""Caption templates: ``{}`` stands wherever the subject is named.

Each training step samples a caption, the order of its tags, whether there is a caption at all, and what names the
subject: the learned tokens, or the plain trigger word.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from lora_service.dataset.options import SUBJECT, Task
from lora_service.errors import InputError

_SUBJECT_TEMPLATES = (
    "{}",
    "a photo of {}",
    "a picture of {}",
    "an image of {}",
    "a photo showing {}",
    "this is {}",
    "a picture that shows {}",
    "here is {}",
    "{} in a photo",
)
_STYLE_TEMPLATES = (
    "a picture in the style of {}",
    "a drawing in the style of {}",
    "an image in the style of {}",
    "a rendering in the style of {}",
    "a work in the style of {}",
    "art in the style of {}",
    "something drawn in the style of {}",
    "a picture, {} style",
)
_LOCATION_TEMPLATES = (
    "{}",
    "a photo of {}",
    "a picture of {}",
    "an image of {}",
    "a photo taken at {}",
    "a picture of the place {}",
    "a view of {}",
    "a scene at {}",
)
TEMPLATES: dict[Task, tuple[str, ...]] = {
    "face": _SUBJECT_TEMPLATES,
    "object": _SUBJECT_TEMPLATES,
    "style": _STYLE_TEMPLATES,
    "location": _LOCATION_TEMPLATES,
}
"""Captions of images without one, by task.

Each is short and claims nothing of the image that might be untrue, such as "cropped", "dark" or "close-up": the model
would learn that the word means this subject.
"""
_BRACKETED = re.compile(r"[\[<{].*[\]>}]")


@dataclass(frozen=True)
class TagOptions:
    """Augmentation of a caption each time it is sampled.

    Args:
        shuffle_tags: put comma-separated tags in random order.
        keep_tokens: the number of tags at the front that keep their place.
        caption_dropout: the share of samples without a caption, 0 to 1.

    Raises:
        InputError: a number is out of range.
    """

    shuffle_tags: bool = False
    keep_tokens: int = 1
    caption_dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.keep_tokens < 0:
            raise InputError("keep_tokens", self.keep_tokens, "0 or more")
        if not 0 <= self.caption_dropout <= 1:
            raise InputError("caption_dropout", self.caption_dropout, "from 0 to 1")


def sample_caption(captions: Sequence[str], options: TagOptions, rng: random.Random) -> str:
    """Return one of ``captions`` for one training step: still a template, or "" by dropout."""
    caption = rng.choice(captions)
    if options.caption_dropout and rng.random() < options.caption_dropout:
        return ""
    return shuffle_tags(caption, options.keep_tokens, rng) if options.shuffle_tags else caption


def shuffle_tags(caption: str, keep_tokens: int, rng: random.Random) -> str:
    """Return ``caption`` with its comma-separated tags in random order, but for the first ``keep_tokens``."""
    tags = [tag.strip() for tag in caption.split(",")]
    kept, shuffled = tags[:keep_tokens], tags[keep_tokens:]
    rng.shuffle(shuffled)
    return ", ".join(kept + shuffled)


def fill_template(template: str, subject: str) -> str:
    """Return ``template`` with ``subject`` in place of ``{}``; other braces stay as they are."""
    return template.replace(SUBJECT, subject)


def caption_to_template(caption: str, trigger_words: Sequence[str]) -> str:
    """Return a person's caption as a template.

    Each of ``trigger_words`` in it becomes ``{}``; a caption without any gets ``{}`` in front. They match as whole
    words in their own case of letters ("tik tok" is not the mark TOK), but for a capital at the start of the caption,
    and for marks in brackets, which are no words of a language.
    """
    template, count = _trigger_pattern((SUBJECT, *trigger_words)).subn(SUBJECT, caption)
    return _tidy(template) if count else f"{SUBJECT}, {_tidy(caption)}".removesuffix(", ")


@lru_cache(maxsize=64)
def _trigger_pattern(trigger_words: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted({word for word in trigger_words if word.strip()}, key=lambda word: (-len(word), word))
    return re.compile("|".join(map(_word_pattern, longest_first)) or r"(?!)")


def _word_pattern(word: str) -> str:
    pattern = re.escape(word)
    if _BRACKETED.fullmatch(word):
        return f"(?i:{pattern})"
    if word[0].islower():
        pattern = rf"(?:{pattern}|\A{re.escape(word[0].upper() + word[1:])})"
    return (r"(?<!\w)" if word[0].isalnum() else "") + pattern + (r"(?!\w)" if word[-1].isalnum() else "")


def _tidy(text: str) -> str:
    """Return ``text`` with single spaces, and no comma without something before it."""
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"\s+(?=,)", "", text)
    return re.sub(r",(\s*,)+", ",", text).strip(" ,")
