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
from lora_service.training.memory.estimate import GIB, OVERHEAD, choose_savings, estimate
from lora_service.training.memory.transformers import transformer_bytes
from tests.errors import raises

CUDA = 0.7 * GIB
"""What CUDA takes of a card itself."""


def resolved(base: DiffusionBase, **inputs: Any) -> TrainConfig:
    config = fit_to_family(TrainConfig.of({"task": "object"} | inputs), base.family)
    return resolve_config(config, base.defaults, "ohwx", 1).config


@pytest.mark.parametrize("name", ["klein", "zimage", pytest.param("flux-dev", marks=pytest.mark.slow)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_estimate_is_what_autograd_saves_or_a_little_more(name: str, checkpointing: bool) -> None:
    counted = count_transformer(name, 512, dtype=torch.bfloat16, checkpointing=checkpointing)
    base = bare_base(name)
    estimated = transformer_bytes(base, 512 // base.vae_scale_factor, torch.bfloat16, checkpointing=checkpointing)
    largest = 0.0
    if checkpointing:  # the count leaves out the block that is made anew
        largest = estimated - transformer_bytes_of_inputs(base)
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


@pytest.mark.parametrize(
    ("name", "targets", "count"),
    [
        ("klein", "attention", 5 * 8 + 20 * 2),
        ("klein", "attention+ff", 5 * 12 + 20 * 2),
        ("klein", "kohya", 5 * 12 + 20 * 2),
        ("flux-dev", "attention", 19 * 8 + 38 * 3),
        ("flux-dev", "attention+ff", 19 * 12 + 38 * 5),
        ("flux-dev", "kohya", 19 * 14 + 38 * 6),
        ("zimage", "attention", 34 * 4),
        ("zimage", "attention+ff", 34 * 7),
        ("zimage", "kohya", 34 * 7 + 32),  # and the modulation of each block but the text's
    ],
)
def test_targets_match_the_layers_of_every_block(name: str, targets: Any, count: int) -> None:
    base = bare_base(name)
    assert len(targets_in("transformer", base.backbone, targets, base.family)) == count
