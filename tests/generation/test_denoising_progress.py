"""Progress and previews while images are drawn."""

from typing import Any

import numpy as np
import pytest
import torch

from lora_service.generation.denoising import DenoisingBatch, Picture
from lora_service.generation.denoising_progress import Preview, Progress
from lora_service.generation.generator import ImageGenerator
from lora_service.generation.request import GenerateRequest
from lora_service.models.loading import load_base
from lora_service.settings import Settings
from tests.small_base import hashes, small_base


def request(**inputs: Any) -> GenerateRequest:
    return GenerateRequest.of({"prompt": "a photo of a dog", "seed": 3, "num_inference_steps": 6, **inputs})


def test_a_line_tells_speed_and_time_left_every_few_seconds() -> None:
    now, lines = [0.0], list[str]()
    progress = Progress(5, lines.append, interval=2.0, clock=lambda: now[0])
    latents = torch.zeros(1)
    for seeds in ([1, 2], [3, 4], [5]):
        batch = DenoisingBatch([Picture(seed) for seed in seeds], [], None, steps=4)
        progress.on_batch_start(batch)
        for step in range(1, 5):
            now[0] += 1.5
            batch.step = step
            assert progress.on_step_end(batch, latents) is latents
        progress.on_batch_end(batch)
    assert lines == [
        "step 2 of 4 of pictures 1–2 of 5: 1.5 s/step, 12 s left",
        "step 1 of 4 of pictures 3–4 of 5: 1.5 s/step, 8 s left",
        "step 3 of 4 of pictures 3–4 of 5: 1.5 s/step, 4 s left",
        "step 1 of 4 of picture 5 of 5: 1.5 s/step, 4 s left",
        "step 3 of 4 of picture 5 of 5: 1.5 s/step, 2 s left",
    ]


def test_a_batch_that_is_drawn_again_counts_once() -> None:
    now, lines = [0.0], list[str]()
    progress = Progress(4, lines.append, interval=1.0, clock=lambda: now[0])
    for seeds in ([1, 2, 3, 4], [1, 2]):
        batch = DenoisingBatch([Picture(seed) for seed in seeds], [], None, steps=2)
        progress.on_batch_start(batch)
        for step in (1, 2):
            now[0] += 1.0
            batch.step = step
            progress.on_step_end(batch, torch.zeros(1))
    assert lines == [
        "step 1 of 2 of pictures 1–4 of 4: 1.0 steps/s, 1 s left",
        "step 1 of 2 of pictures 1–2 of 4: 1.0 steps/s, 3 s left",
    ]


def test_fast_and_long_runs_are_told_in_fitting_units() -> None:
    now, lines = [0.0], list[str]()
    progress = Progress(1, lines.append, clock=lambda: now[0])
    batch = DenoisingBatch([Picture(1)], [], None, steps=400)
    progress.on_batch_start(batch)
    now[0], batch.step = 2.0, 5
    progress.on_step_end(batch, torch.zeros(1))
    assert lines == ["step 5 of 400: 2.5 steps/s, 2 min 38 s left"]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_previews_come_every_few_steps_and_change_nothing(prediction_type: str) -> None:
    generator, previews = ImageGenerator(small_base(prediction_type)), list[Preview]()
    before = hashes(generator.base)
    plain = generator.generate(request(), [])
    shown = generator.generate(request(preview_every=2, num_outputs=1), [], on_preview=previews.append)
    assert [(each.step, each.steps) for each in previews] == [(2, 6), (4, 6)]
    assert previews[0].image.size == (32, 32)
    assert shown[0].image.tobytes() == plain[0].image.tobytes()
    assert hashes(generator.base) == before


def test_previews_are_off_unless_asked_for_and_small() -> None:
    generator, previews = ImageGenerator(small_base()), list[Preview]()
    generator.generate(request(), [], on_preview=previews.append)
    assert not previews
    generator.generate(
        request(preview_every=1, num_inference_steps=2, width=320, height=160), [], on_preview=previews.append
    )
    assert previews[0].image.size == (256, 128)


def test_a_preview_looks_like_the_picture_that_becomes_of_it() -> None:
    """With schedulers of every parametrisation, and before the last step."""
    generator = ImageGenerator(load_base(Settings(base_model="embedded")))
    for scheduler in ("DDIM", "K_EULER", "K_EULER_ANCESTRAL", "DPMSolverMultistep"):
        previews: list[Preview] = []
        inputs = request(
            prompt="a red ball on the grass", scheduler=scheduler, num_inference_steps=8, preview_every=6,
            guidance_scale=3, num_outputs=1,
        )  # fmt: skip
        final = generator.generate(inputs, [], on_preview=previews.append)[0].image
        image = previews[-1].image
        error = np.abs(np.asarray(image, int) - np.asarray(final, int)).mean()
        mirrored = np.abs(np.asarray(image.rotate(180), int) - np.asarray(final, int)).mean()
        assert error < 30, scheduler
        assert error < mirrored / 1.5, scheduler
