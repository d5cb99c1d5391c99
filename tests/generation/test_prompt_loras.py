"""LoRAs with their scales, as prompts from A1111 and Civitai name them."""

import pytest

from lora_service.errors import InputError
from lora_service.generation.prompt_loras import take_lora_tags
from lora_service.lora.scale import Scale
from tests.errors import raises

NAMES = [["My-Dog_v2", "zumvek dog"], ["style"]]


@pytest.mark.parametrize(
    ("tag", "index", "scale"),
    [
        ("<lora:My-Dog_v2:0.6>", 0, Scale(0.6, 0.6)),
        ("<lora:my dog v2.safetensors:0.6>", 0, Scale(0.6, 0.6)),
        ("<lora:zumvek dog:-1>", 0, Scale(-1, -1)),
        ("<lyco:style:0.5:0.8>", 1, Scale(unet=0.8, text_encoder=0.5)),
        ("<lora:style:te=0.5:unet=0.8>", 1, Scale(unet=0.8, text_encoder=0.5)),
        ("<lora:style:unet=0.8>", 1, Scale(0.8, 0.8)),
    ],
)
def test_a_tag_sets_the_scale_of_the_lora_it_names(tag: str, index: int, scale: Scale) -> None:
    tagged = take_lora_tags(f"a dog {tag}, sunny", NAMES)
    assert tagged.prompt == "a dog, sunny"
    assert tagged.scales == {index: scale}
    assert len(tagged.notes) == 1


def test_a_tag_without_a_scale_keeps_the_requests() -> None:
    assert take_lora_tags("<lora:style> a dog", NAMES).scales == {}


@pytest.mark.parametrize("tag", ["<lora:other:0.6>", "<hypernet:style:1>"])
def test_a_tag_that_cannot_be_followed_is_left_out_and_named(tag: str) -> None:
    tagged = take_lora_tags(f"{tag} a dog", NAMES)
    assert tagged.prompt == "a dog"
    assert tagged.scales == {}
    assert tagged.notes[0].startswith(f"warning: {tag}")


def test_a_tag_in_the_negative_prompt_sets_nothing() -> None:
    tagged = take_lora_tags("blurry <lora:style:0.6>", NAMES, "negative_prompt")
    assert (tagged.prompt, tagged.scales) == ("blurry", {})
    assert "warning" in tagged.notes[0]


@pytest.mark.parametrize("scale", ["3", "nan", "x", "1e9"])
def test_a_scale_that_is_none_is_refused(scale: str) -> None:
    with raises(InputError, field="prompt"):
        take_lora_tags(f"<lora:style:{scale}>", NAMES)


@pytest.mark.parametrize("prompt", ["a  photo of <1> ", "<lora2:s1> <s1>", "1 < 2 > lora:style"])
def test_a_prompt_without_tags_stays_as_it_is(prompt: str) -> None:
    assert take_lora_tags(prompt, NAMES).prompt == prompt
