"""The estimate for full-size transformers, on the meta device, against what autograd saves, and cards it promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.activations import count_transformer
from benchmarks.flow_models import bare_base
from lora_service.errors import InputError
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.training.adapters.lora_targets import targets_in
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.inputs.family_inputs import fit_to_family
from lora_service.training.inputs.resolved_config import resolve_config
from lora_service.training.memory.estimate import GIB, OVERHEAD, MemorySavings, choose_savings, estimate
from lora_service.training.memory.transformers import transformer_bytes
from tests.errors import raises

CUDA = 0.7 * GIB
"""What CUDA takes of a card itself."""


def resolved(base: DiffusionBase, **inputs: Any) -> TrainConfig:
    config = fit_to_family(TrainConfig.of({"task": "object"} | inputs), base.family)
    return resolve_config(config, base.defaults, "ohwx", 1).config


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("flux-dev", "qwen-image", "sd35-large")]


@pytest.mark.parametrize("name", ["klein", "zimage", "krea2", "sd35-medium", *SLOW])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_estimate_is_what_autograd_saves_or_a_little_more(
    name: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = count_transformer(name, 512, dtype=torch.bfloat16, checkpointing=checkpointing)
    base = bare_base(name)
    side = 512 // base.vae_scale_factor
    estimated = transformer_bytes(base, side, torch.bfloat16, checkpointing=checkpointing)
    largest = 0.0
    if checkpointing:  # the count leaves out the block that is made anew
        monkeypatch.setattr(type(base.family), "text_blocks", lambda family, backbone: {})
        of_blocks = transformer_bytes(base, side, torch.bfloat16, checkpointing=True)
        largest = of_blocks - transformer_bytes_of_inputs(base)
    assert 0.95 < estimated / (counted + largest) < 1.35


def transformer_bytes_of_inputs(base: DiffusionBase) -> float:
    """The bytes of the inputs of all blocks at 512 pixels: 2 for each position and hidden unit."""
    side = 512 // base.vae_scale_factor
    positions = base.family.positions(side, side) + base.text.positions
    config = base.backbone.config
    blocks = sum(len(base.backbone.get_submodule(child)) for child in base.family.targets.blocks)
    hidden = config.get("dim") or config.num_attention_heads * config.attention_head_dim
    return float(2 * positions * hidden * blocks)


@pytest.mark.parametrize(("name", "gibibytes"), [("klein", 12), ("zimage", 16)])
def test_a_training_at_512_pixels_fits_the_card_with_a_base_of_4_bits(name: str, gibibytes: int) -> None:
    base, lines = bare_base(name, quantization="nf4"), list[str]()
    config = resolved(base, resolution=512)
    weights = estimate(base, config, checkpointing=False).weights
    free = int(gibibytes * GIB - CUDA - weights)
    savings = choose_savings(base, config, lines.append, free)
    assert savings.need(base, config) * OVERHEAD <= free
    assert not any("may not fit" in line for line in lines)
    with raises(InputError, code="out_of_memory"):
        choose_savings(base, config, lines.append, GIB // 8)


def test_blocks_wait_where_nothing_else_helps() -> None:
    base, said = bare_base("klein"), list[str]()
    config = resolved(base, resolution=512)
    *others, blocks = MemorySavings.allowed_by(config, base)
    assert blocks == MemorySavings(checkpointing=True, offloading=True, blocks=True)
    sizes = [sum(2 * weight.numel() for weight in block.parameters()) for block in base.blocks]
    assert len(sizes) == 25
    assert blocks.need(base, config) == others[-1].need(base, config) - (sum(sizes) - max(sizes))
    free = int(0.9 * others[-1].need(base, config))
    assert choose_savings(base, config, said.append, free) == blocks
    assert any("blocks" in line for line in said)
    off = config.model_copy(update={"gradient_checkpointing": "off"})
    assert not any(each.blocks for each in MemorySavings.allowed_by(off, base))
    packed = bare_base("klein", quantization="nf4")
    assert not any(each.blocks for each in MemorySavings.allowed_by(config, packed))


def test_t5_waits_while_clip_learns_and_the_others_where_nothing_does() -> None:
    base, both, tuning = bare_base("sd35-medium"), {}, {"max_train_steps_ti": 0}
    t5, clips = (
        sum(2 * weight.numel() for name in names for weight in base.text.encoders[name].parameters())
        for names in (["text_encoder_3"], ["text_encoder", "text_encoder_2"])
    )
    vae = sum(2 * weight.numel() for weight in base.vae.parameters())
    away = [estimate(base, resolved(base, **each), checkpointing=True).away for each in (both, tuning)]
    assert away == [vae + t5, vae + t5 + clips]
    assert t5 > 8 * GIB
    output = resolved(base, preservation="output", class_word="dog")
    assert estimate(base, output, checkpointing=True).away == vae


def test_the_tokens_and_layers_of_clip_count_with_its_own_positions() -> None:
    base = bare_base("sd35-medium")
    frozen, tokens = (
        estimate(base, resolved(base, max_train_steps_ti=steps), checkpointing=True).step for steps in (0, 1)
    )
    assert 0.05 < (tokens - frozen) / GIB < 0.2


@pytest.mark.parametrize(
    ("name", "targets", "count"),
    [
        ("klein", "attention", 5 * 8 + 20 * 2),
        ("klein", "attention+ff", 5 * 12 + 20 * 2),
        ("klein", "kohya", 5 * 12 + 20 * 2),
        ("flux-dev", "attention", 19 * 8 + 38 * 3),
        ("flux-dev", "attention+ff", 19 * 12 + 38 * 5),
        ("flux-dev", "kohya", 19 * 14 + 38 * 6),
        ("sd35-medium", "attention", 24 * 8 - 1 + 13 * 4),  # the text ends before the last block's end
        ("sd35-medium", "attention+ff", 24 * 12 - 3 + 13 * 4),
        ("sd35-large", "attention", 38 * 8 - 1),
        ("zimage", "attention", 34 * 4),
        ("zimage", "attention+ff", 34 * 7),
        ("zimage", "kohya", 34 * 7 + 32),  # and the modulation of each block but the text's
    ],
)
def test_targets_match_the_layers_of_every_block(name: str, targets: Any, count: int) -> None:
    base = bare_base(name)
    assert len(targets_in("transformer", base.backbone, targets, base.family)) == count
