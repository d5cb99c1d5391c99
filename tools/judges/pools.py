"""Pictures to train judges on, drawn beforehand."""

from __future__ import annotations

import random
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from tools.embedded.pool import SIZE, predrawn
from tools.judges.questions import any_thing, numbers
from tools.synthetic import captions, subjects
from tools.synthetic.canvas import reduce

PER_SUBJECT = 6


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
    """Pictures of the synthetic dataset, their captions, and the numbers of the answers they tell."""
    pictures, told = predrawn(_draw_captioned, count, work / f"captioned-{count}.npy")
    return pictures, [caption for caption, _ in told], torch.tensor([answered for _, answered in told])


def _draw_subject(seed: int, kind: str) -> tuple[bytes, None]:
    shown = islice(subjects.pictures(seed, SIZE, "judge", kind), PER_SUBJECT)
    return b"".join(picture.image.tobytes() for picture in shown), None


def subject_pictures(kind: str, count: int, work: Path) -> np.ndarray:
    """Subjects of one kind, each in several scenes: uint8 ``(count, PER_SUBJECT, 64, 64, 3)``.

    Their seeds are those for tuning, from 0 on.
    """
    draw = partial(_draw_subject, kind=kind)
    pictures, _ = predrawn(draw, count, work / f"{kind}s-{count}.npy")
    return pictures.reshape(count, PER_SUBJECT, SIZE, SIZE, 3)
