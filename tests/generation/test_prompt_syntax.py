"""Weights and breaks in prompts, as A1111 and compel read them."""

import time

import pytest

from lora_service.errors import InputError
from lora_service.generation.prompt_syntax import escaped, parse_prompt
from tests.errors import raises


def pieces(prompt: str, **options: object) -> list[list[tuple[str, float]]]:
    """Parse, with weights rounded to four places."""
    parts = parse_prompt(prompt, **options).parts  # type: ignore[arg-type]
    return [[(text, round(weight, 4)) for text, weight in part] for part in parts]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        # The first eight are A1111's own examples and rules.
        ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        ("((word))", [("word", 1.21)]),
        ("(abc:3.12)", [("abc", 3.12)]),
        ("[word]", [("word", 0.9091)]),
        ("[[word]]", [("word", 0.8264)]),
        (r"\(literal\]", [("(literal]", 1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a (", 1), ("house", 1.43), (" ", 1), ("on", 0.9091), (" a ", 1), ("hill", 0.5), (", sun, ", 1),
                ("sky", 1.331), (".", 1),
            ],
        ),
        ("(a [weaker] cat:1.5)", [("a ", 1.5), ("weaker", 1.3636), (" cat", 1.5)]),
        ("(red :.5) (-1 : -1 )", [("red ", 0.5), (" ", 1), ("-1 ", -1)]),
        ("(a red)1.3 ball", [("a red", 1.3), (" ball", 1)]),
        ("(a)++ (b)- c++ d-d-- e", [("a", 1.21), (" ", 1), ("b", 0.9), (" c++ ", 1), ("d-d", 0.81), (" e", 1)]),
        ("sci-fi++ word+ C++ a--b", [("sci-fi", 1.21), (" word+ C++ a--b", 1)]),
        ("(masterpiece)1girl", [("masterpiece", 1.1), ("1girl", 1)]),
    ],
)  # fmt: skip
def test_weights(prompt: str, expected: list[tuple[str, float]]) -> None:
    assert pieces(prompt) == [expected]


@pytest.mark.parametrize(
    "prompt",
    ["a photo of <s1> on the beach, 16:9", "a smile :) and another :(", "[open", "closed]", "", "BREAKFAST", "x\\y"],
)
def test_a_prompt_without_syntax_is_plain(prompt: str) -> None:
    assert parse_prompt(prompt).plain == prompt
    assert parse_prompt(prompt).notes == ()


def test_escaped_text_is_taken_literally() -> None:
    text = r"jinx (arcane:1.2) [x] \( BREA\K"
    assert parse_prompt(escaped(text)).plain == text
    assert parse_prompt(r"a \(real\) cat").plain == "a (real) cat"


def test_break_begins_a_part_and_weights_reach_over_it() -> None:
    assert pieces("a cat BREAK a dog") == [[("a cat ", 1)], [(" a dog", 1)]]
    assert pieces("(a cat BREAK a dog:1.2)") == [[("a cat ", 1.2)], [(" a dog", 1.2)]]
    assert pieces("BREAK a BREAK BREAK b BREAK") == [[(" a ", 1)], [(" b ", 1)]]
    assert pieces("BREAK") == [[]]


def test_names_of_tokens_stand_for_themselves() -> None:
    assert pieces("(style_(1):1.2)", literals=["style_(1)"]) == [[("style_(1)", 1.2)]]
    assert parse_prompt("a[b]++ x", literals=["a[b]++", "<s1>"]).plain == "a[b]++ x"


def test_what_is_not_done_is_named() -> None:
    for prompt in ("[cat:dog:0.5]", "[cat:0.5]", "[cat|dog]", '("a", "b").blend(1, 1)', "(a:5)"):
        (note,) = parse_prompt(prompt, "negative_prompt").notes
        assert note.startswith("warning: the negative prompt")


@pytest.mark.parametrize("prompt", ["(a:11)", "(a:-11)", "(" * 40 + "a" + ")" * 40])
def test_a_weight_that_nothing_could_be_drawn_with_is_refused(prompt: str) -> None:
    with raises(InputError, code="weight_out_of_range", field="prompt"):
        parse_prompt(prompt)


@pytest.mark.attack("values")
@pytest.mark.parametrize("piece", ["(", "[", "[:", "(:1", "([", "a++", "BREAK ", "[1.1", "\\", "<"])
def test_long_prompts_of_syntax_are_parsed_at_once(piece: str) -> None:
    started = time.process_time()
    parse_prompt(piece * (20_000 // len(piece)) + ")")
    assert time.process_time() - started < 1
