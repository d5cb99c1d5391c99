"""Everything together on the embedded base: samplers, modes and LoRAs, requests in any order, and what breaks off."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from lora_service.generation import image_batches
from lora_service.generation.denoising import DenoisingPlan
from lora_service.generation.generator import ImageGenerator
from lora_service.generation.initial_image import InputImages
from lora_service.generation.request import GenerateRequest
from lora_service.generation.schedulers import SCHEDULERS
from lora_service.lora.patcher import ScaledLora
from lora_service.lora.scale import Scale
from lora_service.models.loading import load_base
from lora_service.settings import Settings
from tests.generation.input_pictures import input_pictures
from tests.lora.lora_fakes import random_lora
from tests.small_base import hashes

MODES = ("text", "picture", "inpaint", "control")
_CASES = list(product(SCHEDULERS, MODES, (0, 1, 2)))
_SHORT = [_CASES[(12 * i) + (5 * i) % 12] for i in range(len(SCHEDULERS))]
"""One case of each sampler, and among them each mode and number of LoRAs."""


@pytest.fixture(scope="module")
def generator() -> ImageGenerator:
    return ImageGenerator(load_base(Settings(base_model="embedded")))


@pytest.fixture(scope="module")
def loras(generator: ImageGenerator) -> list[ScaledLora]:
    components = generator.base.components
    return [(random_lora(components, rank=rank, seed=rank), Scale(0.3, 0.3)) for rank in (2, 3)]


@pytest.fixture(scope="module")
def pictures(generator: ImageGenerator) -> Mapping[str, InputImages]:
    return input_pictures(32)


@pytest.fixture
def finite_latents(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Note of each batch whether its latents are numbers: a picture of NaN is black."""
    seen: list[bool] = []
    denoise = image_batches.denoise

    def noted(plan: DenoisingPlan, seeds: Sequence[int]) -> torch.Tensor:
        latents = denoise(plan, seeds)
        seen.append(bool(torch.isfinite(latents).all()))
        return latents

    monkeypatch.setattr(image_batches, "denoise", noted)
    return seen


def request(**inputs: Any) -> GenerateRequest:
    common = {"prompt": "a red ball on the grass", "seed": 1, "num_inference_steps": 4, "width": 32, "height": 32}
    return GenerateRequest.of(common | inputs)


@pytest.mark.parametrize(
    ("scheduler", "mode", "count"),
    [pytest.param(*case, marks=[] if case in _SHORT else pytest.mark.campaign) for case in _CASES],
)
def test_every_sampler_draws_in_every_mode_with_any_number_of_loras(
    generator: ImageGenerator,
    loras: list[ScaledLora],
    pictures: Mapping[str, InputImages],
    finite_latents: list[bool],
    scheduler: str,
    mode: str,
    count: int,
) -> None:
    drawn = generator.generate(request(scheduler=scheduler), loras[:count], images=pictures[mode])[0].image
    assert finite_latents == [True]
    assert drawn.size == (32, 32)
    assert np.asarray(drawn).std() > 1


@pytest.mark.parametrize("requests", [8, pytest.param(100, marks=pytest.mark.campaign)])
def test_the_same_seed_is_the_same_picture_whatever_was_asked_before(
    generator: ImageGenerator, loras: list[ScaledLora], pictures: Mapping[str, InputImages], requests: int
) -> None:
    """Each kind is asked for at least twice, in a shuffled order, with broken-off requests between."""
    generator.patcher.restore()
    before = hashes(generator.base)
    rng = random.Random(0)
    kinds = [(*rng.choice(_CASES), rng.randrange(100), rng.choice((1, 1, 2, 3))) for _ in range(requests // 2)]
    order = [*kinds, *kinds]
    rng.shuffle(order)
    drawn: dict[tuple[Any, ...], list[bytes]] = {}
    for number, kind in enumerate(order):
        scheduler, mode, count, seed, outputs = kind
        inputs = request(scheduler=scheduler, seed=seed, num_outputs=outputs, num_inference_steps=3)
        if number % 3 == 1:
            break_off(generator, inputs, loras[: 1 + number % 2], pictures[mode])
        result = generator.generate(inputs, loras[:count], images=pictures[mode])
        images = [each.image.tobytes() for each in result]
        assert drawn.setdefault(kind, images) == images, kind
    generator.patcher.restore()
    assert hashes(generator.base) == before


def break_off(generator: ImageGenerator, inputs: GenerateRequest, loras: list[ScaledLora], images: InputImages) -> None:
    """Cancel a request in its second step, as Cog does: with an exception that is none of ours."""
    calls = 0

    def cancel(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt

    hook = generator.base.unet.conv_in.register_forward_hook(cancel)
    try:
        with pytest.raises(KeyboardInterrupt):
            generator.generate(inputs, loras, images=images)
    finally:
        hook.remove()


@pytest.mark.parametrize("mode", MODES)
def test_what_is_cancelled_within_a_batch_leaves_the_base_as_it_was(
    generator: ImageGenerator, loras: list[ScaledLora], pictures: Mapping[str, InputImages], mode: str
) -> None:
    generator.patcher.restore()
    before = hashes(generator.base)
    hooks = [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in generator.base.unet.modules()]
    inputs = request(num_outputs=2, preview_every=1)
    break_off(generator, inputs, loras, pictures[mode])
    assert hashes(generator.base) == before
    after = [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in generator.base.unet.modules()]
    assert after == hooks
    assert generator.base.vae.use_tiling is False
