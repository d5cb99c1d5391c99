"""Requests as clients of replicate/lora send them: every documented input has its effect."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lora_service.errors import InputError
from lora_service.lora.files import write_lora
from lora_service.services.inference_service import InferenceService
from lora_service.settings import Settings
from tests.errors import raises
from tests.generation.control.small_adapters import saved, small_controlnet, small_t2i_adapter
from tests.lora.lora_fakes import random_lora
from tests.small_base import small_base

UPLOADS = ("image", "adapter_condition_image")
SCHEDULERS = ("DDIM", "K_EULER", "DPMSolverMultistep", "K_EULER_ANCESTRAL", "PNDM", "KLMS")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("predecessor")


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[InferenceService]:
    base = small_base()
    sketch, depth = saved(small_t2i_adapter(base), folder / "a"), saved(small_controlnet(base), folder / "b")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lora_service.models.loading.load_base", lambda settings, for_training=False: base)
        with InferenceService(Settings(adapters=(f"sketch={sketch}", f"depth={depth}")), allow_local=True) as service:
            yield service


@pytest.fixture(scope="module")
def common(folder: Path) -> dict[str, Any]:
    """A whole request, every input with another value than the default where that is possible."""
    Image.effect_noise((32, 32), 90).convert("RGB").save(folder / "image.png")
    sketch = Image.new("RGB", (32, 32), "white")
    sketch.paste("black", (10, 4, 12, 28))
    sketch.save(folder / "sketch.png")
    sketch.transpose(Image.Transpose.ROTATE_90).save(folder / "other.png")
    loras = [folder / "1.safetensors", folder / "2.safetensors"]
    for seed, path in enumerate(loras):
        write_lora(path, random_lora(small_base().components, tokens=("<s1>",), seed=seed))
    return {
        "prompt": "a photo of <1> riding a dog",
        "negative_prompt": "cat",
        "width": 64,
        "height": 64,
        "num_outputs": 1,
        "num_inference_steps": 8,
        "guidance_scale": 7.5,
        "image": folder / "image.png",
        "prompt_strength": 0.8,
        "scheduler": "DPMSolverMultistep",
        "lora_urls": str(loras[0]),
        "lora_scales": "0.5",
        "seed": 7,
        "adapter_condition_image": folder / "sketch.png",
        "adapter_type": "sketch",
    }


def draw(service: InferenceService, inputs: dict[str, Any]) -> list[Image.Image]:
    uploads = {name: inputs[name] for name in UPLOADS if name in inputs}
    # A server removes uploads after the job; here they are used again.
    rest = {name: value for name, value in inputs.items() if name not in UPLOADS}
    return [Image.open(path).convert("RGB") for path in service.run(rest, **uploads, log=lambda line: None)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt", "a dog on the beach"), ("negative_prompt", "beach"), ("num_inference_steps", 5),
        ("guidance_scale", 1.5), ("prompt_strength", 0.4), ("lora_scales", "1.5"), ("lora_urls", "2.safetensors"),
        ("seed", 8), ("image", "sketch.png"), ("adapter_condition_image", "other.png"), ("adapter_type", "depth"),
        *(("scheduler", name) for name in SCHEDULERS if name != "DPMSolverMultistep"),
    ],
)  # fmt: skip
def test_an_input_changes_the_picture(
    service: InferenceService, common: dict[str, Any], folder: Path, name: str, value: Any
) -> None:
    if str(value).endswith((".png", ".safetensors")):
        value = folder / value if name in UPLOADS else str(folder / value)
    plain = draw(service, common)[0]
    assert draw(service, common | {name: value})[0].tobytes() != plain.tobytes()
    assert draw(service, common)[0].tobytes() == plain.tobytes()


def test_size_and_number_are_as_asked_for(service: InferenceService, common: dict[str, Any]) -> None:
    images = draw(service, common | {"width": 128, "height": 64, "num_outputs": 4})
    assert [image.size for image in images] == [(128, 64)] * 4
    assert len({image.tobytes() for image in images}) == 4


def test_what_the_predecessor_refused_is_refused_by_name(service: InferenceService, common: dict[str, Any]) -> None:
    for name, value in (("adapter_type", "scribble"), ("scheduler", "EULER"), ("lora_scales", "0.5|0.5")):
        with raises(InputError, field=name):
            draw(service, common | {name: value})
