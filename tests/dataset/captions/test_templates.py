"""Captions as templates."""

from __future__ import annotations

import random
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_service.dataset.captions.templates import (
    TEMPLATES,
    TagOptions,
    caption_to_template,
    fill_template,
    sample_caption,
    shuffle_tags,
)
from lora_service.dataset.options import DEFAULT_TRIGGER_WORDS, SUBJECT, Task
from lora_service.errors import InputError
from tests.errors import raises


@pytest.mark.parametrize(
    ("caption", "template"),
    [
        ("a photo of TOK on grass", "a photo of {} on grass"),
        ("a photo of [trigger] on grass", "a photo of {} on grass"),
        ("[TRIGGER], smiling", "{}, smiling"),
        ("a photo of <1> on grass", "a photo of {} on grass"),
        ("dancing on tik tok", "{}, dancing on tik tok"),
        ("a TOKEN and a sTOK", "{}, a TOKEN and a sTOK"),
        ("a photo of {} on grass", "a photo of {} on grass"),
        ("sitting on grass", "{}, sitting on grass"),
        ("1dog, grass,  sky", "{}, 1dog, grass, sky"),
        ("TOK sits beside another TOK", "{} sits beside another {}"),
        ("a STOKER at work", "{}, a STOKER at work"),
        ("TOK's hat", "{}'s hat"),
        ("a {red} dog", "{}, a {red} dog"),
        (", ,TOK,, x", "{}, x"),
        ("", "{}"),
    ],
)
def test_templates_from_captions(caption: str, template: str) -> None:
    assert caption_to_template(caption, DEFAULT_TRIGGER_WORDS) == template


def test_the_trigger_itself_stands_for_the_subject() -> None:
    trigger_words = (*DEFAULT_TRIGGER_WORDS, "zwx dog", "zwx")
    assert caption_to_template("Zwx dog by the sea", trigger_words) == "{} by the sea"
    assert caption_to_template("zwx by the sea", trigger_words) == "{} by the sea"
    assert caption_to_template("my Zwx by the sea", trigger_words) == "{}, my Zwx by the sea"
    assert caption_to_template("zwx dog and another zwx dog", trigger_words) == "{} and another {}"


@given(st.text(), st.lists(st.text()))
def test_every_caption_names_the_subject(caption: str, trigger_words: list[str]) -> None:
    assert SUBJECT in caption_to_template(caption, trigger_words)


def test_each_task_has_templates_that_name_the_subject_once_and_differ() -> None:
    assert set(TEMPLATES) == set(get_args(Task))
    for templates in TEMPLATES.values():
        assert all(template.count(SUBJECT) == 1 for template in templates)
        assert len(set(templates)) == len(templates)


def test_filling_leaves_other_braces() -> None:
    assert fill_template("{} and {x}", "<s1>") == "<s1> and {x}"


def test_shuffling_keeps_the_first_tags_and_loses_none() -> None:
    caption = "{}, dog, grass, sky, sun"
    shuffled = {shuffle_tags(caption, 2, random.Random(seed)) for seed in range(40)}
    assert len(shuffled) == 6
    assert all(each.startswith("{}, dog, ") for each in shuffled)
    assert {frozenset(each.split(", ")) for each in shuffled} == {frozenset(caption.split(", "))}


def test_dropout_removes_its_share_of_captions() -> None:
    rng = random.Random(0)
    sampled = [sample_caption(["{} a", "{} b"], TagOptions(caption_dropout=0.25), rng) for _ in range(4000)]
    assert sampled.count("") == pytest.approx(1000, abs=120)
    assert sampled.count("{} a") == pytest.approx(1500, abs=120)


def test_sampling_repeats_with_its_seed() -> None:
    options = TagOptions(shuffle_tags=True, caption_dropout=0.1)
    one, other = random.Random(3), random.Random(3)
    captions = ["{}, a, b, c", "{}, d, e, f"]
    assert [sample_caption(captions, options, one) for _ in range(9)] == [
        sample_caption(captions, options, other) for _ in range(9)
    ]


@pytest.mark.parametrize("options", [{"keep_tokens": -1}, {"caption_dropout": 1.5}])
def test_tag_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with raises(InputError, field=next(iter(options))):
        TagOptions(**options)  # type: ignore[arg-type]
