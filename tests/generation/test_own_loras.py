"""Pictures that each have a LoRA for themselves: those that it makes alone, in order, and no trace of it after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lora_service.errors import InputError, WrongBaseError
from lora_service.generation import image_batches, own_loras
from lora_service.generation.denoising import DenoisingPlan, Picture
from lora_service.generation.generator import ImageGenerator
from lora_service.generation.image_files import GeneratedImage
from lora_service.generation.initial_image import InputImages
from lora_service.generation.request import GenerateRequest
from lora_service.lora.lycoris import DoraLayer
from lora_service.lora.patcher import ScaledLora
from lora_service.lora.scale import Scale, parse_scale
from lora_service.lora.weights import LoraLayer, LoraWeights
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.loading import load_base
from lora_service.settings import Settings
from tests.errors import raises
from tests.generation.input_pictures import input_pictures
from tests.lora.lora_fakes import is_attention, is_convolution, random_lora
from tests.small_base import hashes, small_base
from tests.small_flow import FLOW_FAMILIES, small_flow_base

HALF = Scale(0.5, 0.5)


def request(**inputs: Any) -> GenerateRequest:
    common = {"prompt": "a photo of <1>", "seed": 3, "num_inference_steps": 3, "lora_mode": "each"}
    return GenerateRequest(**{**common, **inputs})


def is_any(path: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or is_convolution(path, module)


def lora(base: DiffusionBase, rank: int, *, targets: Any = is_attention, tokens: tuple[str, ...] = ()) -> LoraWeights:
    weights = random_lora(base.components, rank=rank, seed=rank, targets=targets, tokens=tokens)
    return LoraWeights(weights.layers, weights.embeddings, {"modelspec.trigger_phrase": f"word{rank}"})


def dora(base: DiffusionBase, rank: int) -> LoraWeights:
    weights = lora(base, rank)
    component, layers = base.family.backbone, dict(base.backbone.named_modules())
    changed = {
        path: DoraLayer(change, (layers[path].weight.norm(dim=1, keepdim=True) * 1.3).detach())
        for path, change in weights.layers[component].items()
    }
    return LoraWeights({**weights.layers, component: changed})


def alone(generator: ImageGenerator, loras: Sequence[ScaledLora], images: InputImages, **inputs: Any) -> list[Any]:
    """Draw each LoRA's pictures in a request of its own."""
    each = request(lora_mode="together", **inputs)
    return [image for scaled in loras for image in generator.generate(each, [scaled], images=images)]


def arrays(generated: Sequence[GeneratedImage]) -> list[Any]:
    return [np.asarray(each.image, int) for each in generated]


def assert_same(together: Sequence[GeneratedImage], single: Sequence[GeneratedImage]) -> None:
    """Assert that pictures are the same but for rounding, and differ from each other."""
    assert len({image.image.tobytes() for image in together}) == len(together)
    for one, other in zip(arrays(together), arrays(single), strict=True):
        assert np.abs(one - other).max() <= 3
    assert [image.settings | {"lora": 0} for image in together] == [image.settings | {"lora": 0} for image in single]


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The LoRAs' numbers of the pictures of each batch."""
    seen: list[list[int]] = []
    denoise = image_batches.denoise

    def noted(plan: DenoisingPlan, pictures: Sequence[Picture]) -> torch.Tensor:
        seen.append([picture.lora for picture in pictures])
        return denoise(plan, pictures)

    monkeypatch.setattr(image_batches, "denoise", noted)
    return seen


@pytest.mark.parametrize(
    ("family", "inputs"),
    [
        ("sd1", {}),
        ("sd1", {"guidance_scale": 1, "scheduler": "KDPM2Ancestral"}),
        ("sd2", {"cache_interval": 2, "guidance_rescale": 0.5}),
        ("sdxl", {"negative_prompt": "a cat, <1>", "scheduler": "DPMSolverMultistepSDE"}),
    ],
)
@pytest.mark.parametrize("mode", ["text", "picture", "inpaint"])
def test_each_picture_is_that_of_its_lora_alone(
    family: str, inputs: dict[str, Any], mode: str, batches: list[list[int]]
) -> None:
    base = small_base(family=family)
    generator, before = ImageGenerator(base), hashes(base)
    loras = [
        (lora(base, 2, targets=is_any, tokens=("<s1>",)), HALF),
        (lora(base, 5, tokens=("<s1>", "<s2>")), parse_scale("0.9/0,unet.up:0.4")),
        (lora(base, 3, targets=is_any), Scale(-0.5, 0.3)),
    ]
    images = input_pictures(32)[mode]
    scales = "0.5|0.9/0,unet.up:0.4|-0.5/0.3"
    together = generator.generate(request(num_outputs=2, lora_scales=scales, **inputs), loras, images=images)
    assert batches == [[0, 0, 1, 1, 2, 2]]
    assert [(each.settings["lora"], each.seed) for each in together] == [(n, s) for n in (1, 2, 3) for s in (3, 4)]
    single = [
        image
        for scaled, scale in zip(loras, scales.split("|"), strict=True)
        for image in alone(generator, [scaled], images, num_outputs=2, lora_scales=scale, **inputs)
    ]
    assert_same(together, single)
    generator.patcher.restore()
    assert hashes(base) == before


@pytest.mark.parametrize("family", FLOW_FAMILIES)
@pytest.mark.parametrize("mode", ["text", "inpaint"])
def test_flow_matching_too(family: str, mode: str, batches: list[list[int]]) -> None:
    base = small_flow_base(family)
    generator, before = ImageGenerator(base), hashes(base)

    def targets(path: str, module: nn.Module) -> bool:
        return isinstance(module, nn.Linear) and not path.startswith(base.family.ragged or "-")

    scales = [HALF, Scale(0.5, 0.5), Scale(0.2, 0.2)]
    loras = [(lora(base, rank, targets=targets), scale) for rank, scale in zip((2, 5, 3), scales, strict=True)]
    prompt = "a photo of <1> and a dog"
    names = ("short", "a word of many letters, " * 9, "middle")  # texts of different lengths
    loras = [
        (LoraWeights(each.layers, each.embeddings, {"modelspec.trigger_phrase": name}), scale)
        for (each, scale), name in zip(loras, names, strict=True)
    ]
    images = input_pictures(32)[mode]
    together = generator.generate(request(prompt=prompt), loras, images=images)
    assert batches == [[0, 1, 2]]
    assert_same(together, alone(generator, loras, images, prompt=prompt))
    generator.patcher.restore()
    assert hashes(base) == before


def test_layers_that_see_texts_in_one_row_are_merged(batches: list[list[int]]) -> None:
    base = small_flow_base("zimage")
    generator = ImageGenerator(base)
    loras = [(lora(base, rank, targets=lambda path, _: path == "cap_embedder.1"), Scale(1.0, 1.0)) for rank in (2, 3)]
    together = generator.generate(request(), loras)
    assert batches == [[0], [1]]
    assert_same(together, alone(generator, loras, InputImages()))


@pytest.mark.parametrize("mode", ["text", "control"])
def test_on_the_embedded_base(mode: str, batches: list[list[int]]) -> None:
    base = load_base(Settings(base_model="embedded"))
    generator, images = ImageGenerator(base), input_pictures(base.defaults.resolution)[mode]
    loras = [(lora(base, rank, tokens=("<s1>",)), Scale(0.3, 0.3)) for rank in (2, 4)]
    together = generator.generate(request(), loras, images=images)
    assert batches == [[0, 1]]
    assert_same(together, alone(generator, loras, images))


def test_what_is_no_product_of_low_rank_is_merged_and_the_order_stays(batches: list[list[int]]) -> None:
    base = small_base()
    generator, before, lines = ImageGenerator(base), hashes(base), list[str]()
    scales = "0.5|0.5|0.5,steps:0-0.5|0.5"
    loras = [
        (dora(base, 2), HALF),
        (lora(base, 3), HALF),
        (lora(base, 4), parse_scale("0.5,steps:0-0.5")),
        (lora(base, 5), HALF),
    ]
    together = generator.generate(request(lora_scales=scales, num_outputs=2), loras, log=lines.append)
    assert batches == [[1, 1, 3, 3], [0, 0], [2, 2]]
    assert [each.settings["lora"] for each in together] == [1, 1, 2, 2, 3, 3, 4, 4]
    single = [
        image
        for scaled, scale in zip(loras, scales.split("|"), strict=True)
        for image in alone(generator, [scaled], InputImages(), num_outputs=2, lora_scales=scale)
    ]
    assert_same(together, single)
    assert "LoRAs 2, 4 are drawn side by side; LoRAs 1, 3 one after another" in lines
    drawn = [line.split(",")[0] for line in lines if line.startswith("image ")]
    assert drawn == [f"image {place} of 8: LoRA {(place + 1) // 2}" for place in (3, 4, 7, 8, 1, 2, 5, 6)]
    generator.patcher.restore()
    assert hashes(base) == before


def test_a_prompt_of_more_chunks_is_drawn_by_itself(batches: list[list[int]]) -> None:
    base = small_base()
    generator = ImageGenerator(base)
    loras = [(lora(base, rank), HALF) for rank in (2, 3, 4)]
    weights = loras[1][0]
    loras[1] = LoraWeights(weights.layers, {}, {"modelspec.trigger_phrase": "a dog " * 40}), HALF
    together = generator.generate(request(), loras)
    assert batches == [[0, 2], [1]]
    assert_same(together, alone(generator, loras, InputImages()))


def test_memory_decides_how_many_loras_there_are_at_once(
    batches: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = small_base()
    generator, loras = ImageGenerator(base), [(lora(base, rank), HALF) for rank in (2, 3, 4)]
    expected = generator.generate(request(num_outputs=2), loras)
    monkeypatch.setattr(own_loras, "loras_at_once", lambda base, size, each, count: 2)
    monkeypatch.setattr(image_batches, "images_at_once", lambda base, size, count, more: 3)
    drawn = generator.generate(request(num_outputs=2), loras)
    assert batches == [[0, 0, 1, 1, 2, 2], [0, 0, 1], [1], [2, 2]]
    assert_same(drawn, expected)


def test_a_compiled_base_draws_one_after_another(batches: list[list[int]]) -> None:
    base = small_base()
    loras = [(lora(base, rank), HALF) for rank in (2, 3)]
    expected = ImageGenerator(base).generate(request(), loras)
    base.compile(backend="eager")
    drawn = ImageGenerator(base).generate(request(), loras)
    assert batches == [[0, 1], [0], [1]]
    assert_same(drawn, expected)


def test_however_it_ends_the_base_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    base = small_base()
    generator, before = ImageGenerator(base), hashes(base)
    loras = [(lora(base, rank), HALF) for rank in (2, 3)]

    def hooks() -> int:
        return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in base.backbone.modules())

    def stop(line: str) -> None:
        if line.startswith("image"):
            assert hooks() == 0
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generator.generate(request(), loras, log=stop)
    assert hashes(base) == before
    forward = nn.Linear.forward

    def fail(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        if hooks():
            raise KeyboardInterrupt
        return forward(self, x)

    monkeypatch.setattr(nn.Linear, "forward", fail)
    with pytest.raises(KeyboardInterrupt):
        generator.generate(request(), loras)
    monkeypatch.undo()
    assert hooks() == 0
    assert hashes(base) == before
    drawn = generator.generate(request(lora_mode="together", prompt="a dog"), [])
    assert (
        drawn[0].image.tobytes()
        == ImageGenerator(small_base()).generate(request(lora_mode="together", prompt="a dog"), [])[0].image.tobytes()
    )


def test_a_lora_that_does_not_fit_is_refused_before_anything_is_drawn(batches: list[list[int]]) -> None:
    base = small_base()
    generator, before, good = ImageGenerator(base), hashes(base), lora(base, 2)
    path, change = next(iter(good.layers["unet"].items()))
    assert isinstance(change, LoraLayer)
    other = LoraWeights({"unet": {path: LoraLayer(torch.zeros(2, 1024), change.up, 2.0)}})
    with raises(WrongBaseError):
        generator.generate(request(), [(good, HALF), (other, HALF)])
    assert batches == []
    assert hashes(base) == before


def test_scale_0_is_the_bare_base() -> None:
    base = small_base()
    generator, loras = ImageGenerator(base), [(lora(base, 2), Scale(0.0, 0.0)), (lora(base, 3), HALF)]
    bare = generator.generate(request(lora_mode="together", prompt="a dog"), [])
    drawn = generator.generate(request(prompt="a dog", lora_scales="0|0.5"), loras)
    assert np.abs(arrays(drawn)[0] - arrays(bare)[0]).max() <= 3
    assert drawn[0].image.tobytes() != drawn[1].image.tobytes()


@pytest.mark.parametrize(
    ("inputs", "code", "field"),
    [
        ({"prompt": "<1> and <2>", "lora_urls": "a|b"}, "unknown_reference", "prompt"),
        ({"negative_prompt": "<2:dog>", "lora_urls": "a|b"}, "unknown_reference", "negative_prompt"),
        ({"prompt": "<1> <lora:dog:0.8>", "lora_urls": "a|b"}, "lora_tag", "prompt"),
        ({"prompt": "a dog"}, "no_lora", "lora_mode"),
    ],
)
def test_what_makes_no_sense_is_refused(inputs: dict[str, Any], code: str, field: str) -> None:
    with raises(InputError, code=code, field=field):
        GenerateRequest.of({"lora_mode": "each", **inputs})


def test_the_work_of_all_pictures_is_bounded() -> None:
    base = small_base()
    loras = [(lora(base, rank), HALF) for rank in (2, 3)]
    limit = 32 * 32 * 3 * 2
    assert len(ImageGenerator(base, limit).generate(request(), loras)) == 2
    with raises(InputError, code="too_much_work", field="num_inference_steps"):
        ImageGenerator(base, limit).generate(request(num_outputs=2), loras)
