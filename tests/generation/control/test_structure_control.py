"""ControlNets and T2I-Adapters: the same images as diffusers' own pipelines, and no trace of them afterwards."""

from pathlib import Path
from typing import Any

import cv2
import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from lora_service.errors import InputError
from lora_service.generation.control.condition_image import trace_canny
from lora_service.generation.generator import ImageGenerator
from lora_service.generation.image_files import GeneratedImage
from lora_service.generation.initial_image import InputImages
from lora_service.generation.request import GenerateRequest
from lora_service.models.control_loading import ControlModels
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.loading import load_base
from lora_service.settings import Settings
from tests.errors import raises
from tests.generation.control.small_adapters import saved, small_controlnet, small_t2i_adapter
from tests.small_base import hashes, pipeline_of, small_base

SIZE = (40, 32)


def condition() -> Image.Image:
    """A drawing: white lines on black, which is used as it is."""
    image = Image.new("RGB", SIZE)
    image.paste("white", (8, 0, 10, 32))
    image.paste("white", (0, 20, 40, 21))
    return image


def request(**inputs: Any) -> GenerateRequest:
    common = {"prompt": "a photo of a dog", "seed": 3, "num_inference_steps": 2, "scheduler": "DDIM", "width": 40}
    return GenerateRequest.of({**common, "guidance_scale": 4.0, "adapter_type": "canny", **inputs})


def controlled(base: DiffusionBase, folder: str) -> ImageGenerator:
    return ImageGenerator(base, controls=ControlModels(base, Settings(adapters=(f"canny={folder}",))))


def pixels(images: list[GeneratedImage]) -> list[bytes]:
    return [generated.image.tobytes() for generated in images]


def theirs(base: DiffusionBase, name: str, **inputs: Any) -> bytes:
    """Draw with a pipeline of diffusers that has the base's models and a control."""
    control = {key: inputs.pop(key) for key in ("controlnet", "adapter") if key in inputs}
    components = pipeline_of(base, DDIMScheduler, clip_sample=False, set_alpha_to_one=False).components
    if "Adapter" not in name or base.family.name != "sdxl":
        components.pop("image_encoder", None)
    more = {"requires_safety_checker": False} if base.family.name != "sdxl" else {}
    components = {key: each for key, each in components.items() if key != "image_encoder"}
    pipeline = getattr(diffusers, name)(**components, **control, **more)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(
        "a photo of a dog",
        num_inference_steps=inputs.pop("num_inference_steps", 2),
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(3),
        **inputs,
    ).images[0]
    return bytes(image.tobytes())


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_controlnet_draws_as_in_diffusers(family: str, tmp_path: Path) -> None:
    base = small_base(family=family)
    controlnet = small_controlnet(base)
    generator = controlled(base, saved(controlnet, tmp_path))
    images = InputImages(adapter_condition_image=condition())
    ours = pixels(generator.generate(request(adapter_scale=0.7), [], images=images))
    name = f"StableDiffusion{'XL' * (base.family.name == 'sdxl')}ControlNetPipeline"
    options = {"controlnet": controlnet, "controlnet_conditioning_scale": 0.7, "width": 40, "height": 32}
    assert ours == [theirs(base, name, image=condition(), **options)]
    assert ours != pixels(generator.generate(request(), []))


def test_a_controlnet_draws_from_an_initial_image_as_in_diffusers(tmp_path: Path) -> None:
    base = small_base()
    controlnet = small_controlnet(base)
    initial = Image.effect_noise(SIZE, 90).convert("RGB")
    images = InputImages(initial, adapter_condition_image=condition())
    inputs = request(num_inference_steps=6, prompt_strength=0.5)
    ours = pixels(controlled(base, saved(controlnet, tmp_path)).generate(inputs, [], images=images))
    options = {"controlnet": controlnet, "control_image": condition(), "strength": 0.5, "num_inference_steps": 6}
    name = "StableDiffusionControlNetImg2ImgPipeline"
    assert ours == [theirs(base, name, image=initial, controlnet_conditioning_scale=1.0, **options)]


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_t2i_adapter_draws_as_in_diffusers(family: str, tmp_path: Path) -> None:
    base = small_base(family=family)
    adapter = small_t2i_adapter(base)
    generator = controlled(base, saved(adapter, tmp_path))
    images = InputImages(adapter_condition_image=condition())
    ours = pixels(generator.generate(request(adapter_scale=0.7), [], images=images))
    name = f"StableDiffusion{'XL' * (base.family.name == 'sdxl')}AdapterPipeline"
    options = {"adapter": adapter, "adapter_conditioning_scale": 0.7, "width": 40, "height": 32}
    assert ours == [theirs(base, name, image=condition().convert("L"), **options)]
    assert ours != pixels(generator.generate(request(), []))


def test_several_images_are_those_drawn_alone_and_nothing_stays(tmp_path: Path) -> None:
    base = small_base()
    before = hashes(base)
    generator = controlled(base, saved(small_t2i_adapter(base), tmp_path))
    bare = pixels(generator.generate(request(), []))
    images = InputImages(adapter_condition_image=condition())
    both = pixels(generator.generate(request(num_outputs=2), [], images=images))
    alone = pixels(generator.generate(request(seed=4), [], images=images))[0]
    values = [np.frombuffer(each, np.uint8).astype(int) for each in (both[1], alone)]
    assert np.abs(values[0] - values[1]).max() <= 2
    assert pixels(generator.generate(request(adapter_scale=0), [], images=images)) == bare
    assert pixels(generator.generate(request(), [])) == bare
    assert hashes(base) == before


def test_an_interruption_leaves_no_control_behind(tmp_path: Path) -> None:
    base = small_base()
    generator = controlled(base, saved(small_controlnet(base), tmp_path))
    bare = pixels(generator.generate(request(), []))

    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    handle = base.unet.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        generator.generate(request(), [], images=InputImages(adapter_condition_image=condition()))
    handle.remove()
    assert not base.unet._forward_pre_hooks
    assert pixels(generator.generate(request(), [])) == bare


def test_a_type_without_weights_is_refused() -> None:
    base = small_base()
    with raises(InputError, code="no_adapter", field="adapter_type"):
        controlled(base, "nowhere").generate(
            request(adapter_type="depth"), [], images=InputImages(adapter_condition_image=condition())
        )


def test_the_embedded_bases_adapter_makes_pictures_follow_lines() -> None:
    """Edges of the results lie where the drawing has lines, far more often than without it."""
    base = load_base(Settings(base_model="embedded"))
    lines = np.zeros((64, 64), np.uint8)
    cv2.circle(lines, (40, 24), 14, 255, 1)
    drawing = Image.fromarray(lines).convert("RGB")
    inputs = GenerateRequest.of({"prompt": "a red apple on a blue background", "seed": 5, "num_outputs": 2})
    generator = ImageGenerator(base)

    def agreement(images: InputImages) -> float:
        near = cv2.dilate(lines, np.ones((5, 5), np.uint8)) > 0
        edges = [trace_canny(np.asarray(each.image)) > 0 for each in generator.generate(inputs, [], images=images)]
        return float(np.mean([(each & near).sum() / max(1, each.sum()) for each in edges]))

    free, controlled_share = agreement(InputImages()), agreement(InputImages(adapter_condition_image=drawing))
    assert controlled_share > 2 * free
