"""Inpainting on every kind of base: the same images as diffusers' pipelines, and what stays stays."""

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image, ImageDraw

from lora_service.errors import InputError
from lora_service.generation import modes
from lora_service.generation.generator import ImageGenerator
from lora_service.generation.initial_image import InputImages
from lora_service.generation.request import GenerateRequest
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.loading import load_base
from lora_service.settings import Settings
from tests.errors import raises
from tests.small_base import hashes, pipeline_of, small_base

SIZE = (32, 32)


def request(**inputs: Any) -> GenerateRequest:
    common = {"prompt": "a photo of a dog", "seed": 3, "num_inference_steps": 6, "scheduler": "DDIM"}
    return GenerateRequest.of({**common, "guidance_scale": 4.0, "keep_unmasked": False, **inputs})


def images(size: tuple[int, int] = SIZE) -> InputImages:
    """A picture and a mask whose edges are edges of latents, so that nothing is lost in scaling it down."""
    white = Image.new("L", size)
    ImageDraw.Draw(white).rectangle((8, 8, 23, 19), fill=255)
    return InputImages(Image.effect_noise(size, 90).convert("RGB"), white)


@pytest.fixture(scope="module")
def embedded() -> ImageGenerator:
    return ImageGenerator(load_base(Settings(base_model="embedded")))


def inpainting_base(family: str) -> DiffusionBase:
    """A small base whose UNet takes a mask and a masked picture too."""
    base = small_base(family=family)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        base.unet.conv_in = torch.nn.Conv2d(9, base.unet.conv_in.out_channels, 3, padding=1).eval()
    base.unet.register_to_config(in_channels=9)
    return base


def theirs(base: DiffusionBase, pictures: InputImages, strength: float, **more: Any) -> Image.Image:
    plain = pipeline_of(base, DDIMScheduler, clip_sample=False, set_alpha_to_one=False)
    name = "StableDiffusionXLInpaintPipeline" if base.family.name == "sdxl" else "StableDiffusionInpaintPipeline"
    image = (
        getattr(diffusers, name)
        .from_pipe(plain)(
            "a photo of a dog",
            image=pictures.image,
            mask_image=pictures.mask,
            strength=strength,
            num_inference_steps=6,
            guidance_scale=4.0,
            width=32,
            height=32,
            generator=torch.Generator().manual_seed(3),
            **more,
        )
        .images[0]
    )
    assert isinstance(image, Image.Image)
    return image


def difference(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one, int) - np.asarray(other, int)).max())


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_inpainting_on_a_unet_of_4_channels_is_that_of_diffusers(family: str, strength: float) -> None:
    base, pictures = small_base(family=family), images()
    ours = ImageGenerator(base).generate(request(prompt_strength=strength), [], images=pictures)[0].image
    assert difference(ours, theirs(base, pictures, strength)) <= 1


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_inpainting_on_a_unet_of_9_channels_is_that_of_diffusers(family: str, strength: float) -> None:
    """But for the masked picture's latents, which diffusers samples after the noise."""
    base, pictures = inpainting_base(family), images()
    ours = ImageGenerator(base).generate(request(prompt_strength=strength), [], images=pictures)[0].image
    assert pictures.image is not None
    assert pictures.mask is not None
    pixels = torch.from_numpy(np.array(pictures.image)).permute(2, 0, 1)[None] / 127.5 - 1
    hole = torch.from_numpy(np.array(pictures.mask) > 0)
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        image = base.scale_latents(base.posterior(pixels).sample(rng))
        masked = base.scale_latents(base.posterior(pixels.masked_fill(hole, 0)).sample(rng))
    more = {"generator": rng, "image": image, "masked_image_latents": masked}
    plain = pipeline_of(base, DDIMScheduler, clip_sample=False, set_alpha_to_one=False)
    name = "StableDiffusionXLInpaintPipeline" if base.family.name == "sdxl" else "StableDiffusionInpaintPipeline"
    expected = (
        getattr(diffusers, name)
        .from_pipe(plain)(
            "a photo of a dog", mask_image=pictures.mask, strength=strength, num_inference_steps=6,
            guidance_scale=4.0, width=32, height=32, **more,
        )
        .images[0]
    )  # fmt: skip
    assert difference(ours, expected) <= 1


@pytest.mark.parametrize("prompt_strength", [1.0, 0.5])
def test_a_unet_of_9_channels_draws_without_a_mask_too(prompt_strength: float) -> None:
    generator, pictures = ImageGenerator(inpainting_base("sd1")), images()
    text = generator.generate(request(), [])[0].image
    picture = generator.generate(
        request(prompt_strength=prompt_strength), [], images=InputImages(image=pictures.image)
    )[0].image
    assert np.asarray(text).std() > 0
    assert text.size == picture.size == SIZE
    assert (difference(text, picture) > 0) == (prompt_strength < 1)


def test_latent_blending_is_what_the_inpainting_pipeline_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a base that both know, with every scheduler that draws no noise in its steps."""
    generator, pictures = ImageGenerator(small_base()), images()
    for scheduler in ("DDIM", "K_EULER", "PNDM", "KLMS", "Heun", "UniPC", "DPMSolverMultistep"):
        inputs = request(prompt_strength=0.7, scheduler=scheduler)
        expected = generator.generate(inputs, [], images=pictures)[0].image
        with monkeypatch.context() as patch:
            # The img2img pipeline then encodes the picture by itself, as it does for latents of other widths.
            patch.setattr(modes, "_PIPELINE_CHANNELS", 5)
            blended = generator.generate(inputs, [], images=pictures)[0].image
        assert difference(blended, expected) <= 1, scheduler


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_the_embedded_base_repaints_the_mask_alone(embedded: ImageGenerator, strength: float) -> None:
    generator = embedded
    before = hashes(generator.base)
    initial = generator.generate(request(prompt="a red ball on the grass"), [])[0].image
    white = Image.new("L", (64, 64))
    ImageDraw.Draw(white).rectangle((16, 16, 47, 47), fill=255)
    inputs = request(prompt="a blue car on the grass", prompt_strength=strength)
    pictures = InputImages(initial, white)
    decoded = generator.generate(inputs, [], images=pictures)[0].image
    kept = generator.generate(inputs.model_copy(update={"keep_unmasked": True}), [], images=pictures)[0]
    black = np.asarray(white) == 0
    assert np.array_equal(np.asarray(kept.image)[black], np.asarray(initial)[black])
    around = np.abs(np.asarray(decoded, int) - np.asarray(initial, int))
    assert around[black].mean() < 8 < around[~black].mean()
    assert kept.settings["keep_unmasked"] is True
    assert kept.settings["mask_feather"] == generator.base.vae_scale_factor
    assert hashes(generator.base) == before


def test_the_blending_knows_the_noise_that_the_pipeline_draws(embedded: ImageGenerator) -> None:
    """With noise of its own, the surroundings would not fit what is drawn; at the first step they are the same."""
    pictures = InputImages(Image.new("RGB", (64, 64), "gray"), Image.new("L", (64, 64), 255))
    for strength in (0.6, 1.0):
        inputs = request(prompt_strength=strength, num_inference_steps=3)
        masked = embedded.generate(inputs, [], images=pictures)[0].image
        plain = embedded.generate(inputs, [], images=InputImages(pictures.image))[0].image
        assert difference(masked, plain) <= 1


def test_a_strength_without_a_step_is_refused_with_a_mask_too() -> None:
    with raises(InputError, field="prompt_strength"):
        ImageGenerator(small_base()).generate(request(prompt_strength=0.1), [], images=images())
