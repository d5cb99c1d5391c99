"""The families of flow matching against diffusers' own pipelines, bit for bit or within 1e-5."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lora_service.generation.generator import ImageGenerator
from lora_service.generation.request import GenerateRequest
from lora_service.models.diffusion_base import DiffusionBase
from tests.small_flow import FLOW_FAMILIES, flow_pipeline_of, small_flow_base

CALL = {"width": 48, "height": 32, "num_inference_steps": 3}


def drawn_by_diffusers(base: DiffusionBase, prompt: str, seed: int, **more: Any) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    return flow_pipeline_of(base)(prompt=prompt, **CALL, **more, generator=generator).images[0]


@pytest.mark.parametrize("family", FLOW_FAMILIES)
@pytest.mark.parametrize("guidance_scale", [0.0, 3.0])
def test_a_request_is_drawn_as_diffusers_draws_it(family: str, guidance_scale: float) -> None:
    base = small_flow_base(family)
    request = GenerateRequest.of({"prompt": "a (dog)", "seed": 5, "guidance_scale": guidance_scale, **CALL})
    ours = ImageGenerator(base).generate(request, [])[0].image
    guidance = base.family.guidance(guidance_scale)
    if base.family.name == "qwen-image":  # whose own guidance needs a prompt that it leads away from
        guidance["negative_prompt"] = ""
    theirs = drawn_by_diffusers(base, "a (dog)", 5, **guidance)
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))
    other = drawn_by_diffusers(base, "a cat", 5, **guidance)
    assert not np.array_equal(np.asarray(ours), np.asarray(other))


@pytest.mark.parametrize("family", FLOW_FAMILIES)
def test_a_prediction_is_the_velocity_of_the_pipelines_steps(family: str) -> None:
    """One Euler step from noise, σ = 1, to 0 is the noise less our prediction at σ = 1."""
    base = small_flow_base(family)
    pipeline = flow_pipeline_of(base)
    width, height = 32 // base.vae_scale_factor, 48 // base.vae_scale_factor
    channels = base.scale_latents(base.posterior(torch.zeros(1, 3, 48, 32)).mean).shape[1]
    noise = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(1))
    text = base.text.encode(base.text.tokenize(["a dog", "a photo of a cat on the beach"]))
    steps: list[torch.Tensor] = []
    # None: that of FLUX.1 is an input of the transformer, 1 in training.
    guidance = base.family.guidance(1.0 if family == "flux1" else 0.0)

    def watch(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        steps.append(base.family.unpack(tensors["latents"], height, width))
        return {}

    with torch.no_grad():
        pipeline(
            prompt=["a dog", "a photo of a cat on the beach"],
            num_inference_steps=1, **guidance, width=32, height=48,
            latents=base.family.pack(noise) if base.family.takes_packed_latents else noise, callback_on_step_end=watch,
        )  # fmt: skip
        ours = base.denoise(noise, torch.ones(2), text)
    torch.testing.assert_close(noise - ours, steps[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FLOW_FAMILIES)
def test_latents_are_those_that_the_decoder_of_the_pipeline_takes(family: str) -> None:
    base = small_flow_base(family)
    pixels = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(2)) * 2 - 1
    with torch.no_grad():
        posterior = base.posterior(pixels)
        latents = base.scale_latents(posterior.mean)
        assert latents.shape[-2:] == (32 // base.vae_scale_factor, 48 // base.vae_scale_factor)
        torch.testing.assert_close(
            base.decode(latents), base.family.decode(base.vae, posterior.mean), atol=1e-5, rtol=0
        )
        sample = posterior.mean + posterior.std * 0.7
        moved = latents + base.scale_deviation(posterior.std) * 0.7
        torch.testing.assert_close(base.scale_latents(sample), moved, atol=1e-5, rtol=0)


def test_kleins_latents_are_those_of_diffusers_image_encoding() -> None:
    base = small_flow_base("flux2-klein")
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(3)) * 2 - 1
    with torch.no_grad():
        theirs = flow_pipeline_of(base)._encode_vae_image(pixels, torch.Generator())
        ours = base.scale_latents(base.posterior(pixels).mode())
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
