"""Captions as templates."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_service.dataset.captions.task_templates import TEMPLATES
from lora_service.dataset.captions.templates import (
    DEFAULT_MARKS,
    SUBJECT,
    TagOptions,
    as_template,
    fill_template,
    parse_prompts,
    sample_caption,
    shuffled,
)
from lora_service.errors import InputError


@pytest.mark.parametrize(
    ("text", "template"),
    [
        ("a photo of TOK on grass", "a photo of {} on grass"),
        ("a photo of [trigger] on grass", "a photo of {} on grass"),
        ("[TRIGGER], smiling", "{}, smiling"),
        ("a photo of {} on grass", "a photo of {} on grass"),
        ("sitting on grass", "{}, sitting on grass"),
        ("1dog, grass,  sky", "{}, 1dog, grass, sky"),
        ("TOK sits, TOK smiles", "{} sits, smiles"),
        ("a STOKER at work", "{}, a STOKER at work"),
        ("TOK's hat", "{}'s hat"),
        ("a {red} dog", "{}, a {red} dog"),
        (", ,TOK,, x", "{}, x"),
        ("", "{}"),
    ],
)
def test_templates_from_captions(text: str, template: str) -> None:
    assert as_template(text, DEFAULT_MARKS) == template


def test_the_trigger_itself_stands_for_the_subject() -> None:
    marks = (*DEFAULT_MARKS, "zwx dog", "zwx")
    assert as_template("Zwx dog by the sea", marks) == "{} by the sea"
    assert as_template("zwx by the sea", marks) == "{} by the sea"


@given(st.text(), st.lists(st.text()))
def test_every_caption_names_the_subject_once(text: str, marks: list[str]) -> None:
    assert as_template(text, marks).count(SUBJECT) == 1


def test_every_template_names_the_subject_once_and_none_twice() -> None:
    for templates in TEMPLATES.values():
        assert all(template.count(SUBJECT) == 1 for template in templates)
        assert len(set(templates)) == len(templates)


def test_filling_leaves_other_braces() -> None:
    assert fill_template("{} and {x}", "<s1>") == "<s1> and {x}"


def test_shuffling_keeps_the_first_tags_and_loses_none() -> None:
    caption = "{}, dog, grass, sky, sun"
    drawn = {shuffled(caption, 2, random.Random(seed)) for seed in range(40)}
    assert len(drawn) == 6
    assert all(each.startswith("{}, dog, ") for each in drawn)
    assert {frozenset(each.split(", ")) for each in drawn} == {frozenset(caption.split(", "))}


def test_dropout_takes_its_share() -> None:
    rng = random.Random(0)
    drawn = [sample_caption(["{} a", "{} b"], TagOptions(caption_dropout=0.25), rng) for _ in range(4000)]
    assert drawn.count("") == pytest.approx(1000, abs=120)
    assert drawn.count("{} a") == pytest.approx(1500, abs=120)


def test_the_same_seed_draws_the_same() -> None:
    options = TagOptions(shuffle_tags=True, caption_dropout=0.1)
    one, other = random.Random(3), random.Random(3)
    captions = ["{}, a, b, c", "{}, d, e, f"]
    assert [sample_caption(captions, options, one) for _ in range(9)] == [
        sample_caption(captions, options, other) for _ in range(9)
    ]


@pytest.mark.parametrize("options", [{"keep_tokens": -1}, {"caption_dropout": 1.5}])
def test_tag_options_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        TagOptions(**options)  # type: ignore[arg-type]


def test_custom_prompts() -> None:
    assert parse_prompts(" ") == ()
    assert parse_prompts('["a photo of {}", "{} at sea"]') == ("a photo of {}", "{} at sea")


@pytest.mark.parametrize("text", ["a photo of {}", "[]", "[1]", '["a photo"]', '["{} and {}"]', "{}"])
def test_custom_prompts_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match=r"custom_prompts is .*, but it must be a"):
        parse_prompts(text)
