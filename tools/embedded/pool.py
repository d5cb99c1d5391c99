"""Pools of drawn pictures as arrays on disk, each picture from a seed of its own."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tools.world import captions, subjects, textures
from tools.world.canvas import reduce
from tools.world.creatures import HELD_OUT_SUBJECTS
from tools.world.description import Description

SIZE = 64
"""Side of the embedded model's pictures in pixels."""


def _world(seed: int) -> random.Random:
    return random.Random(f"world {seed}")


def described(seed: int) -> Description:
    """What picture ``seed`` of the pool ``world`` shows."""
    return captions.describe(_world(seed))


def _draw_world(seed: int) -> tuple[bytes, str]:
    sample = captions.sample(_world(seed))
    return reduce(sample.picture, SIZE).tobytes(), sample.caption


def _draw_variety(seed: int) -> tuple[bytes, str]:
    rng = random.Random(f"variety {seed}")
    if rng.random() < 0.35:
        return reduce(captions.sample(rng).picture, SIZE).tobytes(), ""
    return reduce(textures.sample(rng), SIZE).tobytes(), ""


def _draw_stranger(kind: str, seed: int) -> tuple[bytes, str]:
    return next(subjects.pictures(HELD_OUT_SUBJECTS + seed, SIZE, "judge", kind)).image.tobytes(), ""


_DRAW: dict[str, Callable[[int], tuple[bytes, str]]] = {
    "world": _draw_world,
    "variety": _draw_variety,
    **{f"unseen-{kind}s": partial(_draw_stranger, kind) for kind in subjects.KINDS},
}


def pool(kind: str, count: int, folder: Path) -> tuple[np.ndarray, list[str]]:
    """``count`` pictures of ``kind``, a key of ``_DRAW``: uint8 ``(count, 64, 64, 3)`` and their captions."""
    return predrawn(_DRAW[kind], count, folder / f"{kind}-{count}.npy")


def predrawn(draw: Callable[[int], tuple[bytes, Any]], count: int, path: Path) -> tuple[np.ndarray, list[Any]]:
    """What ``draw`` makes of the seeds 0 to ``count - 1``, drawn once and kept at ``path``.

    ``draw`` is a module's function that returns the bytes of one or more pictures,
    and what is told of them, as JSON can hold it. Returns uint8 ``(n, 64, 64, 3)`` and the list of what is told.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(2) as workers:
            drawn = list(workers.map(draw, range(count), chunksize=256))
        pictures = np.frombuffer(b"".join(p for p, _ in drawn), np.uint8).reshape(-1, SIZE, SIZE, 3)
        path.with_suffix(".json").write_text(json.dumps([told for _, told in drawn]))
        part = path.with_suffix(".part.npy")
        np.save(part, pictures)
        part.replace(path)
    return np.load(path, mmap_mode="r"), json.loads(path.with_suffix(".json").read_text())


def to_tensor(pictures: np.ndarray) -> torch.Tensor:
    """uint8 ``(n, h, w, 3)`` to float ``(n, 3, h, w)`` in [-1, 1]."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
