"""Validation of the inputs of an image generation, and references to LoRAs in the prompt."""

from typing import Any

import pytest

from lora_service.errors import InputError
from lora_service.generation.references import expand_references
from lora_service.generation.request import GenerateRequest
from lora_service.lora.scale import Scale
from tests.errors import raises


@pytest.mark.parametrize(
    ("inputs", "field", "expected"),
    [
        ({"width": 8}, "width", "at least 16"),
        ({"num_outputs": 9}, "num_outputs", "at most 8"),
        ({"scheduler": "EULER"}, "scheduler", "DDIM, K_EULER, DPMSolverMultistep"),
        ({"lora_urls": "x", "lora_scales": "much"}, "lora_scales", "a number from -2 to 2"),
        ({"lora_urls": "x", "lora_scales": "3"}, "lora_scales", "a number from -2 to 2"),
        ({"lora_urls": "x", "lora_scales": "nan"}, "lora_scales", "a number from -2 to 2"),
        ({"lora_urls": "x|y|z", "lora_scales": "1|0.5"}, "lora_scales", "one scale, or 3"),
        ({"lora_urls": "|".join("x" * 9)}, "lora_urls", "at most 8 links"),
    ],
)
def test_a_bad_input_is_named_with_its_value_and_the_accepted_ones(
    inputs: dict[str, Any], field: str, expected: str
) -> None:
    with raises(InputError, field=field) as caught:
        GenerateRequest.of(inputs)
    assert caught.value.value == inputs[field]
    assert expected in caught.value.expected


def test_links_and_scales_are_split_and_paired() -> None:
    request = GenerateRequest.of({"lora_urls": "a | b", "lora_scales": "0.8/0.5|-1"})
    assert request.loras() == [("a", Scale(0.8, 0.5)), ("b", Scale(-1.0, -1.0))]


def test_one_scale_serves_all_links() -> None:
    request = GenerateRequest.of({"lora_urls": "a|b|c"})
    assert [scale for _, scale in request.loras()] == [Scale(0.8, 0.8)] * 3


def test_references_become_tokens_and_trigger_words() -> None:
    expanded = expand_references("<1> and <2> on the beach", ["<s1><s2>", "ohwx dog"])
    assert expanded.prompt == "<s1><s2> and ohwx dog on the beach"
    assert expanded.notes == ()


def test_without_a_lora_references_are_left_out_with_a_note() -> None:
    expanded = expand_references("a photo of <1>", [])
    assert expanded.prompt == "a photo of"
    (note,) = expanded.notes
    assert "<1>" in note


def test_a_reference_to_a_missing_lora_is_an_error() -> None:
    with raises(InputError, code="unknown_reference", field="prompt"):
        expand_references("<2>", ["x"])


def test_other_brackets_are_left_alone() -> None:
    assert expand_references("a <lora:x:1> <s1> <0>", ["y"]).prompt == "a <lora:x:1> <s1> <0>"


def test_a_loras_subjects_are_called_by_number_and_name() -> None:
    named = [{"1": "<s1><s2>", "2": "<s3><s4>", "zwx dog": "<s1><s2>", "vok": "<s3><s4>"}, {"1": "ohwx"}]
    subjects: list[str | None] = ["<s1><s2>", "ohwx"]
    for prompt, expected in {
        "<1> and <1:2>": "<s1><s2> and <s3><s4>",
        "<1:Zwx  dog> with <1:vok>, <2:1>": "<s1><s2> with <s3><s4>, ohwx",
        "<lora:x:1> <1:a|b>": "<lora:x:1> <1:a|b>",
    }.items():
        assert expand_references(prompt, subjects, named_subjects=named).prompt == expected
    for prompt in ("<1:3>", "<1:cat>", "<2:2>", "<3:1>"):
        with raises(InputError, code="unknown_reference", field="prompt"):
            expand_references(prompt, subjects, named_subjects=named)
    left_out = expand_references("a <1:2>", [None, "ohwx"], named_subjects=named)
    assert left_out.prompt == "a"
    assert "LoRA 1" in left_out.notes[0]


def test_jpg_is_jpeg() -> None:
    assert [GenerateRequest.of({"output_format": name}).output_format for name in ("jpg", "JPEG")] == ["jpeg", "jpeg"]
