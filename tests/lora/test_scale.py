"""The grammar of scales: plain numbers, blocks, and the share of the steps."""

import pytest

from lora_service.errors import InputError
from lora_service.lora.scale import Scale, block_of, parse_scale, with_outer_blocks
from tests.errors import raises


@pytest.mark.parametrize(
    ("text", "scale"),
    [
        ("0.8", Scale(0.8, 0.8)),
        (" 0.8/0.5 ", Scale(0.8, 0.5)),
        ("-1e-1", Scale(-0.1, -0.1)),
        ("unet.down:0.5,unet.mid:1", Scale(1.0, 1.0, (("unet.down", 0.5), ("unet.mid", 1.0)))),
        ("0, unet.up.1 : 1.5", Scale(0.0, 0.0, (("unet.up.1", 1.5),))),
        ("0.8/0,steps:0.25-.75", Scale(0.8, 0.0, (), 0.25, 0.75)),
        ("steps:0-0.6", Scale(1.0, 1.0, (), 0.0, 0.6)),
        ("text_encoder_2:0", Scale(1.0, 1.0, (("text_encoder_2", 0.0),))),
    ],
)
def test_a_scale_is_read(text: str, scale: Scale) -> None:
    assert parse_scale(text) == scale


@pytest.mark.parametrize(
    "text",
    [
        "", "1/2/1", "0.5/", "1,5", "1|", "nan", "3", "unet.down:3", "unet.down:", "unet.down", "down:1",
        "unet.down:1,unet.down:0", "0.5,", "steps:0.5", "steps:0.6-0.2", "steps:0-2", "steps:0.3-0.3",
        "steps:0-0.5,steps:0.6-1", "0.5,unet.down:1,1",
    ],
)  # fmt: skip
def test_what_is_no_scale_is_refused(text: str) -> None:
    with raises(InputError, field="lora_scales"):
        parse_scale(text)


def test_the_smallest_named_block_that_holds_a_weight_counts() -> None:
    scale = parse_scale("0.8/0.5,unet.down:0.2,unet.down.1:0.7,unet.mid:0")
    of = {
        "down_blocks.0.attentions.0.proj_in": 0.2,
        "down_blocks.1.resnets.0.conv1": 0.7,
        "down_blocks.10.resnets.0.conv1": 0.2,
        "mid_block.attentions.0.proj_in": 0.0,
        "up_blocks.1.attentions.0.proj_in": 0.8,
        "conv_in": 0.8,
    }
    assert {path: scale.of("unet", path) for path in of} == of
    assert scale.of("text_encoder", "encoder.layers.0.mlp.fc1") == 0.5


def test_a_block_has_the_name_of_its_level() -> None:
    assert block_of("unet", "up_blocks.2.resnets.0.conv1") == "unet.up.2"
    assert block_of("unet", "mid_block.resnets.0.conv1") == "unet.mid"
    assert block_of("unet", "time_embedding.linear_1") == "unet"
    assert block_of("text_encoder", "encoder.layers.0.mlp.fc1") == "text_encoder"
    assert with_outer_blocks(["unet.up.2"]) == {"unet", "unet.up", "unet.up.2"}


def test_only_a_scale_without_any_factor_is_zero() -> None:
    assert parse_scale("0,unet.down:0").is_zero
    assert not parse_scale("0,unet.down:0.1").is_zero
