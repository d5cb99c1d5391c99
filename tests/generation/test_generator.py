"""Drawing on a tiny base: what a LoRA changes, and that nothing of it stays."""

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoPipelineForImage2Image, DDIMScheduler
from PIL import Image

from lora_service.errors import InputError, WrongBaseError
from lora_service.generation.generator import GeneratedImage, ImageGenerator, save_image
from lora_service.generation.request import GenerateRequest
from lora_service.generation.schedulers import SCHEDULERS
from lora_service.lora.scale import Scale
from lora_service.lora.weights import LoraLayer, LoraWeights
from lora_service.models.loading import load_base
from lora_service.settings import Settings
from tests.small_base import hashes, pipeline_of, small_base
from tests.small_models import FAMILIES

FULL = Scale(1.0, 1.0)


def request(**inputs: Any) -> GenerateRequest:
    return GenerateRequest.of({"prompt": "a photo of a dog", "seed": 3, "num_inference_steps": 2} | inputs)


def lora(drawing: ImageGenerator, rank: int = 2) -> LoraWeights:
    """A LoRA with tokens that changes one layer of each part a lot."""
    generator = torch.Generator().manual_seed(7)
    layers = {}
    for component, ending in (("unet", "attn2.to_k"), ("text_encoder", "q_proj")):
        path, module = next((p, m) for p, m in drawing.base.components[component].named_modules() if p.endswith(ending))
        down = torch.randn(rank, module.in_features, generator=generator)
        up = torch.randn(module.out_features, rank, generator=generator)
        layers[component] = {path: LoraLayer(down=down, up=up, alpha=float(rank))}
    width = drawing.base.text.encoders["text_encoder"].config.hidden_size
    embeddings = {"<s1>": {"text_encoder": torch.randn(width, generator=generator)}}
    return LoraWeights(layers=layers, embeddings=embeddings, metadata={"modelspec.trigger_phrase": "ohwx"})


def pixels(pictures: list[GeneratedImage]) -> list[bytes]:
    return [picture.image.tobytes() for picture in pictures]


@pytest.mark.parametrize(
    ("family", "prediction_type", "negative"),
    [("sd1", "epsilon", "cat"), ("sd2", "v_prediction", ""), ("sdxl", "epsilon", "cat"), ("sdxl", "v_prediction", "")],
)
def test_the_base_draws_what_diffusers_draws(family: str, prediction_type: str, negative: str) -> None:
    base = small_base(prediction_type, family)
    asked = request(scheduler="DDIM", guidance_scale=4.0, negative_prompt=negative, width=40)
    ours = ImageGenerator(base).draw(asked, [])
    pipeline = pipeline_of(base, DDIMScheduler, clip_sample=False, set_alpha_to_one=False)
    theirs = pipeline(
        "a photo of a dog",
        negative_prompt=negative or None,
        num_inference_steps=2,
        guidance_scale=4.0,
        width=40,
        height=32,
        generator=torch.Generator().manual_seed(3),
    ).images[0]
    assert pixels(ours) == [theirs.tobytes()]


@pytest.mark.parametrize("family", [*FAMILIES, "embedded"])
def test_a_picture_to_start_from_is_redrawn_as_diffusers_does(family: str) -> None:
    base = load_base(Settings(base_model="embedded")) if family == "embedded" else small_base(family=family)
    side = base.defaults.resolution
    start = Image.effect_noise((side, side), 90).convert("RGB")
    asked = request(scheduler="DDIM", guidance_scale=4.0, num_inference_steps=10, prompt_strength=0.5)
    ours = ImageGenerator(base).draw(asked, [], image=start)
    plain = pipeline_of(base, DDIMScheduler, clip_sample=False, set_alpha_to_one=False)
    theirs = AutoPipelineForImage2Image.from_pipe(plain)(
        "a photo of a dog",
        image=start,
        strength=0.5,
        num_inference_steps=10,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(3),
    ).images[0]
    assert pixels(ours) == [theirs.tobytes()]


def test_a_lora_changes_the_picture_scale_0_does_not_and_nothing_stays() -> None:
    drawing = ImageGenerator(small_base())
    before, weights = hashes(drawing.base), lora(drawing)
    bare = pixels(drawing.draw(request(), []))
    full = pixels(drawing.draw(request(), [(weights, FULL)]))
    half = pixels(drawing.draw(request(), [(weights, Scale(0.5, 0.5))]))
    zero = pixels(drawing.draw(request(), [(weights, Scale(0.0, 0.0))]))
    assert len({bare[0], full[0], half[0]}) == 3
    assert zero == bare
    assert pixels(drawing.draw(request(), [])) == bare
    assert hashes(drawing.base) == before


def test_scale_0_is_as_if_the_lora_were_not_there_in_the_prompt_either() -> None:
    drawing = ImageGenerator(small_base())
    weights, asked = lora(drawing), request(prompt="a photo of <1> on the beach")
    assert pixels(drawing.draw(asked, [(weights, Scale(0.0, 0.0))])) == pixels(drawing.draw(asked, []))


def test_tokens_reach_the_prompt() -> None:
    drawing = ImageGenerator(small_base())
    weights = lora(drawing)
    pictures = drawing.draw(request(prompt="a photo of <1>"), [(weights, FULL)])
    assert pictures[0].settings["prompt"] == "a photo of <s1>"
    assert pixels(pictures) == pixels(drawing.draw(request(prompt="a photo of <s1>"), [(weights, FULL)]))


def test_an_interruption_leaves_the_bare_base() -> None:
    drawing = ImageGenerator(small_base())
    before, weights = hashes(drawing.base), lora(drawing)

    def stop(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drawing.draw(request(), [(weights, FULL)], log=stop)
    assert hashes(drawing.base) == before


def test_a_lora_of_another_width_is_refused_and_leaves_the_bare_base() -> None:
    drawing = ImageGenerator(small_base())
    before, weights = hashes(drawing.base), lora(drawing)
    path, layer = next(iter(weights.layers["unet"].items()))
    other = LoraLayer(down=torch.zeros(2, 1024), up=layer.up, alpha=2.0)  # type: ignore[attr-defined]
    with pytest.raises(WrongBaseError):
        drawing.draw(request(), [(LoraWeights(layers={"unet": {path: other}}), FULL)])
    assert hashes(drawing.base) == before


def test_each_picture_is_what_its_own_seed_gives() -> None:
    drawing = ImageGenerator(small_base())
    several = drawing.draw(request(num_outputs=3), [])
    assert [picture.seed for picture in several] == [3, 4, 5]
    assert pixels(several)[2] == pixels(drawing.draw(request(seed=5), []))[0]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("predicted", ["epsilon", "sample"])
def test_every_sampler_draws_what_the_seed_gives(scheduler: str, predicted: str) -> None:
    drawing = ImageGenerator(small_base(predicted))
    first, again = (drawing.draw(request(scheduler=scheduler, num_inference_steps=4), []) for _ in range(2))
    assert first[0].image.size == (32, 32)
    assert np.asarray(first[0].image).std() > 0
    assert pixels(again) == pixels(first)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_sampler_draws_the_same_whether_noise_or_latents_are_predicted(scheduler: str) -> None:
    drawn = []
    for kind in ("epsilon", "sample"):
        sampler = SCHEDULERS[scheduler].make(small_base(kind).scheduler_config)
        sampler.set_timesteps(5)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, 4, 4, 4, generator=generator) * sampler.init_noise_sigma
        for t in sampler.timesteps:
            noisy = sampler.scale_model_input(x, t)
            in_sigmas = sampler.init_noise_sigma != 1  # these may stand between two timesteps
            alpha = 1 / (1 + sampler.sigmas[sampler.step_index] ** 2) if in_sigmas else sampler.alphas_cumprod[t]
            latents = torch.tanh(noisy)
            told = latents if kind == "sample" else (noisy - alpha.sqrt() * latents) / (1 - alpha).sqrt()
            given = {"generator": generator} if "generator" in inspect.signature(sampler.step).parameters else {}
            x = sampler.step(told, t, x, **given).prev_sample
        drawn.append(x)
    torch.testing.assert_close(drawn[1], drawn[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_sampler_keeps_to_a_schedule_without_signal_at_its_end_or_is_refused(scheduler: str) -> None:
    base = small_base("v_prediction")
    plain = SCHEDULERS[scheduler].make(base.scheduler_config)
    # What diffusers notes as left at its default it would not hand on.
    base.scheduler_config = {k: v for k, v in base.scheduler_config.items() if k != "_use_default_values"}
    base.scheduler_config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    if scheduler in ("PNDM", "KLMS", "Heun"):  # diffusers' classes of these know nothing of it
        with pytest.raises(InputError, match=f"scheduler is '{scheduler}', but it must be one of DDIM, .* LCM for a"):
            ImageGenerator(base).draw(request(scheduler=scheduler), [])
    else:
        assert SCHEDULERS[scheduler].make(base.scheduler_config).alphas_cumprod[-1] < plain.alphas_cumprod[-1] / 10
        ImageGenerator(base).draw(request(scheduler=scheduler), [])


def test_a_picture_to_start_from_gives_the_size_and_is_kept_at_low_strength() -> None:
    drawing, start = ImageGenerator(small_base()), Image.new("RGB", (96, 64), "white")
    near, far = (
        drawing.draw(request(prompt_strength=s, num_inference_steps=10), [], image=start)[0].image for s in (0.1, 1.0)
    )
    assert near.size == far.size == (48, 32)
    assert near.tobytes() != far.tobytes()


def test_sizes_that_do_not_suit_the_base_are_said() -> None:
    with pytest.raises(InputError, match="width is 36, but it must be a multiple of 8 for small, like 32"):
        ImageGenerator(small_base()).draw(request(width=36), [])


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_files_carry_their_settings(tmp_path: Path, ending: str) -> None:
    picture = GeneratedImage(Image.new("RGB", (16, 16), "red"), 3, {"seed": 3, "prompt": "ä dog"})
    with Image.open(save_image(picture, tmp_path / f"out-0.{ending}")) as opened:
        if ending == "png":
            text = opened.text["parameters"]  # type: ignore[attr-defined]
        else:
            text = opened.getexif().get_ifd(0x8769)[0x9286].removeprefix(b"UNICODE\0").decode("utf-16-be")
    assert json.loads(text) == {"seed": 3, "prompt": "ä dog"}
