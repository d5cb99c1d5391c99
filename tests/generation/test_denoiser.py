"""Rescaled guidance, drafts of a layer cache, prompt embeds kept, and LoRAs in a share of the steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from lora_service.generation.few_steps import few_step_advice, few_step_kind
from lora_service.generation.generator import ImageGenerator
from lora_service.generation.initial_image import InputImages
from lora_service.generation.layer_cache import LayerCache, inner_layers
from lora_service.generation.prompt_cache import PromptCache
from lora_service.generation.request import GenerateRequest
from lora_service.lora.scale import Scale, parse_scale
from lora_service.lora.weights import LoraLayer, LoraWeights
from lora_service.models.families.sd1 import SD15
from tests.lora.lora_fakes import random_lora
from tests.small_base import hashes, pipeline_of, small_base
from tests.small_models import FAMILIES

FULL = Scale(1.0, 1.0)


def request(**inputs: Any) -> GenerateRequest:
    return GenerateRequest.of({"prompt": "a photo of a dog", "seed": 3, "num_inference_steps": 4} | inputs)


def drawn(generator: ImageGenerator, *loras: tuple[LoraWeights, Scale], **inputs: Any) -> bytes:
    return generator.generate(request(**inputs), list(loras))[0].image.tobytes()


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_guidance_is_rescaled_as_diffusers_does(family: str) -> None:
    base = small_base("v_prediction", family)
    inputs = {"scheduler": "DDIM", "guidance_scale": 6.0, "negative_prompt": "cat"}
    ours = ImageGenerator(base).generate(request(guidance_rescale=0.7, **inputs), [])[0]
    theirs = pipeline_of(base, DDIMScheduler, clip_sample=False, set_alpha_to_one=False)(
        "a photo of a dog", negative_prompt="cat", num_inference_steps=4, guidance_scale=6.0, guidance_rescale=0.7,
        width=32, height=32, generator=torch.Generator().manual_seed(3),
    ).images[0]  # fmt: skip
    assert np.abs(np.asarray(ours.image, int) - np.asarray(theirs, int)).max() <= 1
    assert ours.image.tobytes() != drawn(ImageGenerator(base), **inputs)
    assert ours.settings["guidance_rescale"] == 0.7


def test_guidance_is_rescaled_from_an_image_too_and_by_default_with_zero_terminal_snr() -> None:
    base = small_base("v_prediction")
    image = InputImages(Image.effect_noise((32, 32), 90).convert("RGB"))
    plain, rescaled = (
        ImageGenerator(base).generate(request(guidance_rescale=rescale), [], images=image)[0].image.tobytes()
        for rescale in (None, 0.7)
    )
    assert plain != rescaled
    config = {key: value for key, value in base.scheduler_config.items() if key != "_use_default_values"}
    base.scheduler_config = config | {"rescale_betas_zero_snr": True}
    assert drawn(ImageGenerator(base)) == drawn(ImageGenerator(base), guidance_rescale=0.7)
    assert drawn(ImageGenerator(base)) != drawn(ImageGenerator(base), guidance_rescale=0.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_draft_computes_the_inner_layers_every_so_many_steps(family: str) -> None:
    base = small_base(family=family)
    calls = {"inner": 0, "outer": 0}
    counted = {"inner": inner_layers(base.unet)[0], "outer": base.unet.up_blocks[-1].resnets[-1]}

    def count(name: str) -> Any:
        return lambda *_: calls.__setitem__(name, calls[name] + 1)

    handles = [next(iter(layer.modules())).register_forward_hook(count(name)) for name, layer in counted.items()]
    full, draft = (drawn(ImageGenerator(base), scheduler="DDIM", cache_interval=interval) for interval in (1, 3))
    for handle in handles:
        handle.remove()
    assert full != draft
    assert calls["outer"] == 8
    assert drawn(ImageGenerator(base), scheduler="DDIM") == full
    assert not any("forward" in module.__dict__ for module in base.unet.modules())


def test_what_a_layer_cache_keeps_in_every_call_changes_nothing() -> None:
    unet = small_base().unet
    cache = LayerCache(unet, 1)
    arguments = (torch.randn(1, 4, 8, 8), torch.tensor(5), torch.randn(1, 7, 32))
    with torch.inference_mode():
        expected = unet(*arguments).sample
        with cache.call():
            assert torch.equal(unet(*arguments).sample, expected)


def test_an_interrupted_draft_leaves_the_layers_as_they_were() -> None:
    base = small_base()
    cache = LayerCache(base.unet, 2)
    with pytest.raises(KeyboardInterrupt), cache.call():
        raise KeyboardInterrupt
    assert not any("forward" in module.__dict__ for module in base.unet.modules())


def test_kept_prompt_embeds_are_never_those_of_other_loras_scales_or_layers() -> None:
    base = small_base()
    cached = ImageGenerator(base, prompt_cache=PromptCache())
    before = hashes(base)
    loras = [random_lora(base.components, tokens=("<s1>",), seed=seed) for seed in range(2)]
    requests: list[tuple[dict[str, Any], list[tuple[LoraWeights, Scale]]]] = [
        ({"prompt": prompt, "clip_skip": clip_skip}, used)
        for prompt in ("a <1>", "a dog")
        for clip_skip in (1, 2)
        for used in (
            [], [(loras[0], FULL)], [(loras[0], Scale(1.0, 0.5))], [(loras[1], FULL)],
            [(loras[0], FULL), (loras[1], FULL)], [(loras[1], FULL), (loras[0], FULL)],
            [(loras[0], parse_scale("1,text_encoder:0.2"))], [(loras[0], Scale(0.0, 0.0))],
        )
    ]  # fmt: skip
    plain = ImageGenerator(base)
    expected = [drawn(plain, *used, **inputs, num_inference_steps=1) for inputs, used in requests]
    plain.patcher.restore()
    for _ in range(2):
        for (inputs, used), picture in zip(requests, expected, strict=True):
            assert drawn(cached, *used, **inputs, num_inference_steps=1) == picture
    cached.patcher.restore()
    assert hashes(base) == before


def test_the_prompts_of_a_second_request_are_not_encoded_again() -> None:
    base = small_base()
    calls: list[int] = []
    encoder = base.text.encoders["text_encoder"]
    encoder.register_forward_hook(lambda *_: calls.append(1))
    generator = ImageGenerator(base, prompt_cache=PromptCache())
    lora = random_lora(base.components)
    for scale in ("1", "1,unet.mid:0", "1,steps:0-0.5", "0.5/1"):
        drawn(generator, (lora, parse_scale(scale)))
    assert len(calls) == 2
    drawn(generator, (lora, parse_scale("1/0.5")))
    assert len(calls) == 4


def test_kept_prompt_embeds_are_bounded() -> None:
    base = small_base()
    one = PromptCache()
    drawn(ImageGenerator(base, prompt_cache=one))
    size = one._bytes // 2
    cache = PromptCache(3 * size)
    generator = ImageGenerator(base, prompt_cache=cache)
    for number in range(5):
        drawn(generator, prompt=f"dog {number}", num_inference_steps=1)
    assert (len(cache), cache._bytes) == (3, 3 * size)


def test_a_lora_in_all_steps_by_two_halves_is_the_same_and_in_one_half_another() -> None:
    base = small_base()
    generator, before = ImageGenerator(base), hashes(base)
    lora = random_lora(base.components, seed=1)
    whole = drawn(generator, (lora, FULL), scheduler="DDIM")
    halves = drawn(
        generator, (lora, parse_scale("steps:0-0.5")), (lora, parse_scale("1/0,steps:0.5-1")), scheduler="DDIM"
    )
    early, late = (
        drawn(generator, (lora, parse_scale(text)), scheduler="DDIM") for text in ("steps:0-0.5", "steps:0.5-1")
    )
    assert whole == halves
    assert len({whole, early, late, drawn(generator, scheduler="DDIM")}) == 4
    twice = generator.generate(request(num_outputs=2, scheduler="DDIM"), [(lora, parse_scale("steps:0-0.5"))])
    assert twice[0].image.tobytes() == early
    generator.patcher.restore()
    assert hashes(base) == before


@pytest.mark.parametrize(
    ("link", "title", "kind"),
    [
        ("https://huggingface.co/latent-consistency/lcm-lora-sdv1-5", "", "LCM"),
        ("ByteDance/SDXL-Lightning/sdxl_lightning_4step_lora.safetensors", "", "Lightning"),
        ("https://huggingface.co/ByteDance/Hyper-SD/resolve/main/Hyper-SD15-8steps-lora.safetensors", "", "Hyper-SD"),
        ("https://example.org/a.safetensors", "SDXL Turbo LoRA", "Turbo"),
        ("https://example.org/lightning-storms.safetensors", "", None),
        ("https://example.org/dog.safetensors", "a dog", None),
    ],
)  # fmt: skip
def test_loras_for_few_steps_are_told_by_their_names(link: str, title: str, kind: str | None) -> None:
    found = few_step_kind(LoraWeights({}, {}, {"modelspec.title": title}), link)
    assert (found.name if found else None) == kind


def test_the_lora_of_a_distilled_transformer_is_none_for_few_steps() -> None:
    """It is named for its base, Z-Image-Turbo say, and the advice is for UNets."""
    change = {"layers.0.attention.to_q": LoraLayer(torch.zeros(1, 8), torch.zeros(8, 1), 1.0)}
    lora = LoraWeights({"transformer": change}, metadata={"modelspec.title": "a dog on Z-Image-Turbo"})
    assert few_step_kind(lora, "dog-zimage-turbo.safetensors") is None


def test_what_a_lora_for_few_steps_needs_is_proposed_where_it_is_not_set() -> None:
    kind = few_step_kind(LoraWeights({}), "lcm-lora.safetensors")
    assert kind is not None
    advice = few_step_advice(kind, GenerateRequest.of({}), SD15)
    assert advice is not None
    for part in ("LCM", "num_inference_steps 2 to 8", "guidance_scale 1 to 2"):
        assert part in advice
    right = {"scheduler": "LCM", "num_inference_steps": 4, "guidance_scale": 1.5}
    assert few_step_advice(kind, GenerateRequest.of(right), SD15) is None
