"""Pictures to train judges on, drawn beforehand."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch

from tools.embedded.pool import SIZE, predrawn
from tools.judges.questions import any_thing, numbers
from tools.world import captions
from tools.world.canvas import reduce


def _draw_reading(seed: int) -> tuple[bytes, list[int]]:
    rng = random.Random(f"reading {seed}")
    description = any_thing(rng)
    return reduce(description.draw(rng), SIZE).tobytes(), numbers(description)


def _draw_captioned(seed: int) -> tuple[bytes, tuple[str, list[int]]]:
    sample = captions.sample(random.Random(f"captioned {seed}"))
    return reduce(sample.picture, SIZE).tobytes(), (sample.caption, numbers(sample.description))


def readings(count: int, work: Path) -> tuple[np.ndarray, torch.Tensor]:
    """Single things: uint8 ``(count, 64, 64, 3)`` and the numbers of their answers ``(count, questions)``."""
    pictures, told = predrawn(_draw_reading, count, work / f"readings-{count}.npy")
    return pictures, torch.tensor(told)


def captioned(count: int, work: Path) -> tuple[np.ndarray, list[str], torch.Tensor]:
    """Pictures of the world, their captions, and the numbers of the answers they tell."""
    pictures, told = predrawn(_draw_captioned, count, work / f"captioned-{count}.npy")
    return pictures, [caption for caption, _ in told], torch.tensor([answered for _, answered in told])
