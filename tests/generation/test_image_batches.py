"""Batches: each image is that of its seed, whatever is drawn beside it, and memory decides how many there are."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from lora_service.errors import InputError
from lora_service.generation import image_batches, image_memory
from lora_service.generation.denoising import DenoisingBatch, DenoisingCallback, DenoisingPlan
from lora_service.generation.generator import ImageGenerator
from lora_service.generation.image_files import GeneratedImage
from lora_service.generation.initial_image import InputImages
from lora_service.generation.request import GenerateRequest
from lora_service.generation.schedulers import SCHEDULERS
from tests.errors import raises
from tests.small_base import hashes, small_base

GIBIBYTE = 2**30


def request(**inputs: Any) -> GenerateRequest:
    return GenerateRequest.of({"prompt": "a photo of a dog", "seed": 3, "num_inference_steps": 4, **inputs})


def images() -> InputImages:
    white = Image.new("L", (32, 32))
    ImageDraw.Draw(white).rectangle((8, 8, 23, 19), fill=255)
    return InputImages(Image.effect_noise((32, 32), 90).convert("RGB"), white)


def arrays(generated: list[GeneratedImage]) -> list[Any]:
    return [np.asarray(each.image, int) for each in generated]


@dataclass
class Batches(DenoisingCallback):
    """Notes the sizes of batches, and may fail as a GPU does."""

    sizes: list[int]
    most: int = 8

    def on_batch_start(self, batch: DenoisingBatch) -> None:
        self.sizes.append(len(batch.pictures))
        if len(batch.pictures) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Batches:
    callback = Batches([])
    denoise = image_batches.denoise

    def with_callback(plan: DenoisingPlan, seeds: Any) -> Any:
        plan = replace(plan, callbacks=[*plan.callbacks, callback])
        return denoise(plan, seeds)

    monkeypatch.setattr(image_batches, "denoise", with_callback)
    return callback


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("mode", ["text", "picture", "mask"])
def test_images_of_a_batch_are_those_of_their_seeds(watched: Batches, scheduler: str, mode: str) -> None:
    """Schedulers that add noise in their steps take each image's from its own generator."""
    pictures = {"text": InputImages(), "picture": InputImages(images().image), "mask": images()}[mode]
    generator, inputs = ImageGenerator(small_base()), {"scheduler": scheduler, "keep_unmasked": False}
    together = generator.generate(request(num_outputs=3, **inputs), [], images=pictures)
    alone = [generator.generate(request(seed=3 + i, **inputs), [], images=pictures)[0] for i in range(3)]
    again = generator.generate(request(num_outputs=3, **inputs), [], images=pictures)
    assert watched.sizes == [3, 1, 1, 1, 3]
    assert [each.seed for each in together] == [3, 4, 5]
    assert len({each.image.tobytes() for each in together}) == 3
    for one, other in zip(arrays(together), arrays(alone), strict=True):
        assert np.abs(one - other).max() <= 2
    assert [each.image.tobytes() for each in again] == [each.image.tobytes() for each in together]


def test_a_batch_that_does_not_fit_is_halved(watched: Batches) -> None:
    watched.most = 2
    generator, lines = ImageGenerator(small_base()), list[str]()
    generated = generator.generate(request(num_outputs=5), [], log=lines.append)
    assert watched.sizes == [5, 2, 2, 1]
    assert [each.seed for each in generated] == [3, 4, 5, 6, 7]
    assert [line for line in lines if "memory" in line] == [
        "The memory is not enough for 5 pictures at once, so 2 are drawn at once."
    ]


def test_an_image_that_does_not_fit_is_refused_and_leaves_the_base(watched: Batches) -> None:
    generator = ImageGenerator(small_base())
    before = hashes(generator.base)
    watched.most = 0
    with raises(InputError, code="too_large_for_memory", field="width"):
        generator.generate(request(num_outputs=2), [])
    assert hashes(generator.base) == before


def test_the_free_memory_decides_how_many_are_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    base, size = small_base(), (64, 64)
    one = image_memory.denoising_bytes(base, size)
    for fitting, count, expected in ((100, 8, 8), (4.1, 8, 4), (5.1, 8, 4), (3.1, 4, 2), (1.1, 8, 1), (0.5, 8, 1)):
        monkeypatch.setattr(image_memory, "free_bytes", lambda device, free=fitting * one / 0.8: int(free))
        assert image_memory.images_at_once(base, size, count) == expected
    monkeypatch.setattr(image_memory, "free_bytes", lambda device: int(8 * one / 0.8) + 1)
    assert image_memory.images_at_once(base, size, 8, one) == 4
    assert image_memory.loras_at_once(base, size, 0, 8) == 8
    assert image_memory.loras_at_once(base, size, one, 8) == 2
    monkeypatch.setattr(image_memory, "free_bytes", lambda device: None)
    assert image_memory.images_at_once(base, size, 8) == image_memory.loras_at_once(base, size, 0, 8) == 1


def test_a_size_beyond_the_memory_is_refused_with_one_that_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    base = small_base()
    monkeypatch.setattr(image_memory, "free_bytes", lambda device: int(image_memory.denoising_bytes(base, (64, 64))))
    with raises(InputError, code="too_large_for_memory", field="width") as caught:
        ImageGenerator(base).generate(request(width=128, height=96), [])
    assert caught.value.value == 128
    assert "64 × 48 would do" in caught.value.expected
    image_memory.check_memory(base, (64, 48))


def test_latents_are_decoded_in_tiles_only_where_the_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    generator, lines = ImageGenerator(small_base()), list[str]()
    whole = generator.generate(request(width=96, height=96), [], log=lines.append)[0]
    assert not any("tiles" in line for line in lines)  # a slow machine logs its steps too
    monkeypatch.setattr(image_memory, "decoding_bytes", lambda base, size: 2.0**60)
    tiled = generator.generate(request(width=96, height=96), [], log=lines.append)[0]
    assert any("tiles" in line for line in lines)
    assert tiled.image.size == whole.image.size
    assert tiled.image.tobytes() != whole.image.tobytes()
    assert generator.base.vae.use_tiling is False
    monkeypatch.undo()
    again = generator.generate(request(width=96, height=96), [])[0]
    assert again.image.tobytes() == whole.image.tobytes()


def test_decoding_that_does_not_fit_is_tried_with_less(monkeypatch: pytest.MonkeyPatch) -> None:
    generator, tried = ImageGenerator(small_base()), list[tuple[int, bool]]()
    expected = generator.generate(request(num_outputs=3), [])
    decode = generator.base.decode

    def short(latents: torch.Tensor) -> torch.Tensor:
        tried.append((len(latents), generator.base.vae.use_tiling))
        if len(latents) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(latents)

    monkeypatch.setattr(generator.base, "decode", short)
    monkeypatch.setattr(image_batches, "decoded_at_once", lambda base, size: 8)
    drawn = generator.generate(request(num_outputs=3), [])
    assert tried == [(3, False), (1, False), (1, False), (1, False)]
    assert [each.image.tobytes() for each in drawn] == [each.image.tobytes() for each in expected]


def test_the_free_memory_of_this_machine_is_plausible() -> None:
    free = image_memory.free_bytes(torch.device("cpu"))
    assert free is None or GIBIBYTE / 100 < free < 2**50
