"""Captions as templates: ``{}`` stands exactly once where the subject is named.

What is put into it (the learned tokens, or the plain trigger word) is drawn at each training step,
as are the caption of several, the order of tags, and whether there is a caption at all.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from lora_service.errors import InputError

SUBJECT = "{}"
DEFAULT_MARKS = ("{}", "[trigger]", "TOK")


@dataclass(frozen=True)
class TagOptions:
    """What happens to a caption each time it is drawn.

    Args:
        shuffle_tags: put comma-separated tags in another order.
        keep_tokens: how many tags at the front keep their place.
        caption_dropout: the share of draws without a caption, 0 to 1.

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
    """One of ``captions`` as this step sees it: still a template, or "" where dropout takes it."""
    caption = rng.choice(captions)
    if options.caption_dropout and rng.random() < options.caption_dropout:
        return ""
    return shuffled(caption, options.keep_tokens, rng) if options.shuffle_tags else caption


def shuffled(caption: str, keep_tokens: int, rng: random.Random) -> str:
    """``caption`` with its comma-separated tags in another order, but for the first ``keep_tokens``."""
    tags = [tag.strip() for tag in caption.split(",")]
    kept, rest = tags[:keep_tokens], tags[keep_tokens:]
    rng.shuffle(rest)
    return ", ".join(kept + rest)


def fill_template(template: str, subject: str) -> str:
    """``template`` with ``subject`` in its place; other braces stay as they are."""
    return template.replace(SUBJECT, subject)


def as_template(text: str, marks: Sequence[str]) -> str:
    """A person's caption as a template.

    The first of ``marks`` becomes ``{}`` and later ones go, as the subject is named once;
    a text without a mark gets ``{}`` in front. Marks are whole words, in any case of letters.
    """
    first, *rest = _pattern((SUBJECT, *marks)).split(text)
    if rest:
        return _tidy(first + SUBJECT + "".join(rest))
    return f"{SUBJECT}, {_tidy(text)}".removesuffix(", ")


def check_prompt(prompt: str) -> None:
    """Raises ``InputError`` unless ``prompt`` names the subject once."""
    if prompt.count(SUBJECT) != 1:
        raise InputError("custom_prompts", prompt, "a template that holds {} exactly once, such as 'a photo of {}'")


def parse_prompts(text: str) -> tuple[str, ...]:
    """The templates in the input ``custom_prompts``: a JSON list, or none when ``text`` is empty.

    Raises:
        InputError: ``text`` is no such list, or a template does not hold ``{}`` once.
    """
    if not text.strip():
        return ()
    try:
        prompts = json.loads(text)
    except ValueError:
        prompts = None
    if not isinstance(prompts, list) or not prompts or not all(isinstance(p, str) for p in prompts):
        raise InputError("custom_prompts", text, """a JSON list of templates, such as '["a photo of {}"]'""")
    for prompt in prompts:
        check_prompt(prompt)
    return tuple(prompts)


def _pattern(marks: Sequence[str]) -> re.Pattern[str]:
    longest_first = sorted({mark for mark in marks if mark.strip()}, key=len, reverse=True)
    words = (
        (r"(?<!\w)" if mark[0].isalnum() else "") + re.escape(mark) + (r"(?!\w)" if mark[-1].isalnum() else "")
        for mark in longest_first
    )
    return re.compile("|".join(words) or r"(?!)", re.IGNORECASE)


def _tidy(text: str) -> str:
    """Single spaces, and no comma without something before it."""
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"\s+(?=,)", "", text)
    return re.sub(r",(\s*,)+", ",", text).strip(" ,")
