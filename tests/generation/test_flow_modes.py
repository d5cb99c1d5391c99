"""Initial images, masks and previews on bases of flow matching, and what these families refuse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image

from lora_service.errors import InputError
from lora_service.generation.denoising_progress import Preview
from lora_service.generation.generator import ImageGenerator
from lora_service.generation.initial_image import InputImages
from lora_service.generation.pipelines import make_pipeline
from lora_service.generation.request import GenerateRequest
from lora_service.lora.scale import Scale
from lora_service.lora.weights import LoraLayer, LoraWeights
from lora_service.models.diffusion_base import DiffusionBase
from tests.errors import raises
from tests.small_flow import FLOW_FAMILIES, small_flow_base

SIDES = {"width": 32, "height": 32}


def photo() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC)


def draw(base: DiffusionBase, images: InputImages | None = None, log: Any = print, **inputs: Any) -> Image.Image:
    request = GenerateRequest.of({"prompt": "a dog", "seed": 3, "num_inference_steps": 4, **SIDES, **inputs})
    return ImageGenerator(base).generate(request, [], images=images, log=log)[0].image


@pytest.mark.parametrize(
    ("family", "pipeline_class"),
    [
        ("zimage", "ZImageImg2ImgPipeline"),
        ("flux1", "FluxImg2ImgPipeline"),
        ("chroma", "ChromaImg2ImgPipeline"),
        ("qwen-image", "QwenImageImg2ImgPipeline"),
    ],
)
def test_an_initial_image_is_drawn_as_diffusers_draws_it(family: str, pipeline_class: str) -> None:
    """From the same noise: some pipelines take the image's most likely latents, and ours samples them."""
    base = small_flow_base(family)
    last = getattr(base.vae, "quant_conv", None) or base.vae.encoder.conv_out
    for parameter in last.parameters():  # the second half is the posterior's log variance
        parameter.data[len(parameter) // 2 :] = -30 if parameter.dim() == 1 else 0
    ours = draw(base, InputImages(photo()), prompt_strength=0.6, guidance_scale=2.0)
    more = base.family.guidance(2.0) | ({"negative_prompt": ""} if family == "qwen-image" else {})
    pipeline = getattr(diffusers, pipeline_class)(
        scheduler=FlowMatchEulerDiscreteScheduler.from_config(base.scheduler_config),
        vae=base.vae,
        transformer=base.backbone,
        **base.text.encoders,
        **{name.replace("text_encoder", "tokenizer"): each for name, each in base.text.tokenizers.items()},
    )
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        prompt="a dog", image=photo(), strength=0.6, num_inference_steps=4, **more,
        generator=torch.Generator().manual_seed(3), **SIDES,
    ).images[0]  # fmt: skip
    assert np.abs(np.asarray(ours, float) - np.asarray(theirs, float)).max() <= 1


@pytest.mark.parametrize("family", FLOW_FAMILIES)
def test_the_result_is_the_nearer_to_the_image_the_less_strength(family: str) -> None:
    base = small_flow_base(family)
    pixels = torch.from_numpy(np.array(photo())).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        [restored] = base.decode(base.scale_latents(base.posterior(pixels).mean))
    target = ((restored.permute(1, 2, 0) / 2 + 0.5).clamp(0, 1) * 255).numpy()
    distances = [
        np.abs(np.asarray(draw(base, InputImages(photo()), prompt_strength=strength), float) - target).mean()
        for strength in (0.25, 1.0)
    ]
    assert distances[0] < distances[1]


@pytest.mark.parametrize("family", FLOW_FAMILIES)
def test_what_a_mask_leaves_is_the_images_own(family: str) -> None:
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (16, 0, 32, 32))
    for strength in (0.5, 1.0):
        drawn = draw(small_flow_base(family), InputImages(photo(), mask), prompt_strength=strength, mask_feather=0)
        assert np.array_equal(np.asarray(drawn)[:, :16], np.asarray(photo())[:, :16])
        assert not np.array_equal(np.asarray(drawn)[:, 16:], np.asarray(photo())[:, 16:])


@pytest.mark.parametrize("family", FLOW_FAMILIES)
def test_the_last_preview_is_nearly_the_picture(family: str) -> None:
    seen: list[Preview] = []
    request = GenerateRequest.of({"prompt": "a dog", "seed": 3, "num_inference_steps": 6, "preview_every": 1, **SIDES})
    drawn = ImageGenerator(small_flow_base(family)).generate(request, [], on_preview=seen.append)[0].image
    assert [preview.step for preview in seen] == [2, 3, 4, 5]
    distances = [np.abs(np.asarray(p.image, float) - np.asarray(drawn, float)).mean() for p in (seen[0], seen[-1])]
    assert distances[1] < distances[0]


@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        ({"scheduler": "DDIM"}, "scheduler"),
        ({"schedule": "karras", "scheduler": "K_EULER"}, "schedule"),
        ({"guidance_rescale": 0.5}, "guidance_rescale"),
        ({"cache_interval": 3}, "cache_interval"),
    ],
)
def test_what_these_families_have_no_counterpart_of_is_refused(inputs: dict[str, Any], field: str) -> None:
    with raises(InputError, code="not_for_this_base", field=field):
        draw(small_flow_base("zimage"), **inputs)


@pytest.mark.parametrize("family", FLOW_FAMILIES)
@pytest.mark.parametrize("images", [None, InputImages(photo())])
def test_images_that_are_drawn_together_are_those_of_their_seeds(family: str, images: InputImages | None) -> None:
    base = small_flow_base(family)
    call = {"prompt": "a dog", "num_inference_steps": 3, "guidance_scale": 2.0, **SIDES}
    drawn = [
        ImageGenerator(base).generate(GenerateRequest.of(call | more), [], images=images)
        for more in ({"seed": 3, "num_outputs": 2}, {"seed": 4})
    ]
    first, second, alone = (np.asarray(each.image, float) for result in drawn for each in result)
    assert np.abs(second - alone).max() <= 1
    assert np.abs(first - second).max() > 5


def test_a_condition_image_is_refused() -> None:
    with raises(InputError, code="not_for_this_base", field="adapter_condition_image"):
        draw(small_flow_base("zimage"), InputImages(adapter_condition_image=photo()))


@pytest.mark.parametrize("family", ["flux2-klein", "flux1"])
@pytest.mark.parametrize(("name", "value"), [("guidance_scale", 4.0), ("negative_prompt", "a cat")])
def test_bases_that_were_distilled_without_guidance_refuse_it(family: str, name: str, value: object) -> None:
    """diffusers' pipelines ignore it."""
    base = replace(small_flow_base(family), pipeline_config={"is_distilled": True})
    if family == "flux1":
        base.backbone.register_to_config(guidance_embeds=False)
    with raises(InputError, code="not_for_this_base", field=name):
        draw(base, **{name: value})


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("family", ["flux2-klein", "krea2"])
def test_whether_a_base_is_distilled_is_said_by_its_pipeline(family: str, distilled: bool) -> None:
    """And not by its defaults, which may be anybody's."""
    base = small_flow_base(family, guidance_scale=4.0 if distilled else 0.0)
    base = replace(base, pipeline_config={**base.pipeline_config, "is_distilled": distilled})
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(base.scheduler_config)
    assert make_pipeline(base, "text2img", scheduler).config.is_distilled is distilled


@pytest.mark.parametrize(("family", "scale"), [("zimage", 0.0), ("krea2", 0.0), ("chroma", 1.0), ("qwen-image", 1.0)])
def test_a_negative_prompt_without_guidance_is_said_to_have_no_effect(family: str, scale: float) -> None:
    base, lines = small_flow_base(family), list[str]()
    drawn = draw(base, negative_prompt="a cat", guidance_scale=scale, log=lines.append)
    assert any("negative_prompt has no effect" in line for line in lines)
    assert np.array_equal(np.asarray(drawn), np.asarray(draw(base, guidance_scale=scale)))
    lines.clear()
    guided = draw(base, negative_prompt="a cat", guidance_scale=scale + 1, log=lines.append)
    assert not any("no effect" in line for line in lines)
    assert not np.array_equal(np.asarray(guided), np.asarray(draw(base, guidance_scale=scale + 1)))


def test_a_long_prompt_is_read_as_far_as_a_caption_is() -> None:
    """Qwen-Image's pipeline would cut it at 512 tokens."""
    base, prompts = small_flow_base("qwen-image"), ["a" * 700 + end for end in ("x", "y")]
    first, second = (np.asarray(draw(base, prompt=prompt)) for prompt in prompts)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(("family", "limit"), [("flux1", 511), ("chroma", 511)])
def test_what_t5_does_not_read_is_said(family: str, limit: int) -> None:
    lines = list[str]()
    draw(small_flow_base(family), prompt="a" * 600, log=lines.append)
    assert f"warning: the prompt has 600 tokens and only the first {limit} are used" in lines


def test_a_lora_with_a_clip_skip_is_drawn_with_all_the_same() -> None:
    """kohya's trainers write the setting for any base."""
    base, prompt = small_flow_base("zimage"), GenerateRequest.of({"prompt": "a dog", "seed": 3, **SIDES})
    change = LoraLayer(torch.zeros(1, 32), torch.zeros(32, 1), 1.0)
    lora = LoraWeights({"transformer": {"layers.0.attention.to_q": change}}, metadata={"ss_clip_skip": "2"})
    assert ImageGenerator(base).generate(prompt, [(lora, Scale(1.0, 1.0))])[0].image.size == (32, 32)
    with raises(InputError, field="clip_skip"):
        draw(base, clip_skip=2)


def test_sides_are_multiples_of_a_patch() -> None:
    base = small_flow_base("flux2-klein")  # of 4 pixels a patch
    assert draw(base, width=36, height=20).size == (36, 20)
    with raises(InputError, field="width"):
        draw(base, width=34, height=20)
