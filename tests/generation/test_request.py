"""What may be asked to be drawn."""

from typing import Any

import pytest

from lora_service.errors import InputError
from lora_service.generation.request import GenerateRequest, expand_references, parse_scale
from lora_service.lora.scale import Scale


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"width": 8}, "width is 8, but it must be at least 16."),
        ({"num_outputs": 9}, "num_outputs is 9, but it must be at most 8."),
        ({"scheduler": "EULER"}, "scheduler is 'EULER', but it must be one of DDIM, K_EULER, DPMSolverMultistep"),
        ({"lora_urls": "x", "lora_scales": "much"}, "lora_scales is 'much', but it must be a number from -2 to 2"),
        ({"lora_urls": "x", "lora_scales": "3"}, "lora_scales is '3'"),
        ({"lora_urls": "x", "lora_scales": "nan"}, "lora_scales is 'nan'"),
        (
            {"lora_urls": "x|y|z", "lora_scales": "1|0.5"},
            "lora_scales is '1|0.5', but it must be one scale, or 3 split",
        ),
        ({"lora_urls": "|".join("x" * 9)}, "lora_urls is 'x|x|x|x|x|x|x|x|x', but it must be at most 8 links"),
    ],
)
def test_bad_inputs_are_named_with_their_value_and_what_would_work(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as raised:
        GenerateRequest.of(inputs)
    assert str(raised.value).startswith(message)


def test_links_and_scales_are_split_and_paired() -> None:
    request = GenerateRequest.of({"lora_urls": "a | b", "lora_scales": "0.8/0.5|-1"})
    assert request.loras() == [("a", Scale(0.8, 0.5)), ("b", Scale(-1.0, -1.0))]


def test_one_scale_serves_all_links() -> None:
    request = GenerateRequest.of({"lora_urls": "a|b|c"})
    assert [scale for _, scale in request.loras()] == [Scale(0.8, 0.8)] * 3


@pytest.mark.parametrize("text", ["", "1/2/1", "0.5/", "1,5", "1|"])
def test_scales_that_are_none(text: str) -> None:
    with pytest.raises(InputError):
        parse_scale(text)


def test_references_are_what_the_loras_learned() -> None:
    wording = expand_references("<1> and <2> on the beach", ["<s1><s2>", "ohwx dog"])
    assert wording.prompt == "<s1><s2> and ohwx dog on the beach"
    assert wording.notes == ()


def test_without_a_lora_the_default_prompt_still_draws_and_says_what_was_left_out() -> None:
    wording = expand_references("a photo of <1>", [])
    assert wording.prompt == "a photo of"
    assert "No LoRA was given, so <1> was left out" in wording.notes[0]


def test_a_reference_to_a_lora_that_is_not_there_is_an_error() -> None:
    with pytest.raises(InputError, match="names <1> to <1>"):
        expand_references("<2>", ["x"])


def test_other_brackets_are_left_alone() -> None:
    assert expand_references("a <lora:x:1> <s1> <0>", ["y"]).prompt == "a <lora:x:1> <s1> <0>"
