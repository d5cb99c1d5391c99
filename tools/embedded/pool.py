"""Pools of drawn pictures as arrays on disk, each picture from a seed of its own."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tools.world import captions, subjects, textures
from tools.world.canvas import reduce
from tools.world.creatures import HELD_OUT_SUBJECTS

SIZE = 64
"""Side of the embedded model's pictures in pixels."""
CHUNK = 256
"""So many seeds are drawn in one go."""


def _draw_world(seed: int) -> tuple[bytes, tuple[str, str]]:
    sample = captions.sample(random.Random(f"world {seed}"))
    return reduce(sample.picture, SIZE).tobytes(), (sample.caption, sample.description.group)


def _draw_variety(seed: int) -> tuple[bytes, str]:
    rng = random.Random(f"variety {seed}")
    if rng.random() < 0.35:
        return reduce(captions.sample(rng).picture, SIZE).tobytes(), ""
    return reduce(textures.sample(rng), SIZE).tobytes(), ""


def _draw_stranger(kind: str, seed: int) -> tuple[bytes, str]:
    return next(subjects.pictures(HELD_OUT_SUBJECTS + seed, SIZE, "judge", kind)).image.tobytes(), ""


_DRAW: dict[str, Callable[[int], tuple[bytes, Any]]] = {
    "world": _draw_world,
    "variety": _draw_variety,
    **{f"unseen-{kind}s": partial(_draw_stranger, kind) for kind in subjects.KINDS},
}


def pool(kind: str, count: int, folder: Path) -> tuple[np.ndarray, list[Any]]:
    """``count`` pictures of ``kind``, a key of ``_DRAW``: uint8 ``(count, 64, 64, 3)``, and what is told of them.

    Of the world that is the caption, and to which of the descriptions' ``GROUPS`` it belongs.
    """
    return drawing(kind, count, folder)()


def drawing(kind: str, count: int, folder: Path) -> Callable[[], tuple[np.ndarray, list[Any]]]:
    """What ``pool`` returns, once it is called: until then it is drawn beside whatever else is done."""
    return _begin(_DRAW[kind], count, folder / f"{kind}-{count}.npy")


def predrawn(draw: Callable[[int], tuple[bytes, Any]], count: int, path: Path) -> tuple[np.ndarray, list[Any]]:
    """What ``draw`` makes of the seeds 0 to ``count - 1``, drawn once and kept at ``path``.

    ``draw`` is a module's function that returns the bytes of one or more pictures, of every seed alike,
    and what is told of them, as JSON can hold it. Returns uint8 ``(n, 64, 64, 3)`` and the list of what is told.
    """
    return _begin(draw, count, path)()


def _begin(
    draw: Callable[[int], tuple[bytes, Any]], count: int, path: Path
) -> Callable[[], tuple[np.ndarray, list[Any]]]:
    def kept() -> tuple[np.ndarray, list[Any]]:
        return np.load(path, mmap_mode="r"), json.loads(path.with_suffix(".json").read_text())

    if path.exists():
        return kept
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npy")
    each = len(draw(0)[0]) // (3 * SIZE**2)
    # The workers write into the file themselves: 400,000 pictures would be 5 GB for one process to read from a pipe.
    np.lib.format.open_memmap(part, "w+", np.uint8, (count * each, SIZE, SIZE, 3))
    # Forked, at once and so before a GPU is touched: what is spawned would import PyTorch and more in each process.
    workers = ProcessPoolExecutor(mp_context=multiprocessing.get_context("fork"), initializer=os.nice, initargs=(5,))
    chunks = [range(start, min(count, start + CHUNK)) for start in range(0, count, CHUNK)]
    told = workers.map(partial(_draw_into, draw, part), chunks)

    def finished() -> tuple[np.ndarray, list[Any]]:
        with workers:
            path.with_suffix(".json").write_text(json.dumps([one for chunk in told for one in chunk]))
        part.replace(path)
        return kept()

    return cache(finished)


def _draw_into(draw: Callable[[int], tuple[bytes, Any]], path: Path, seeds: range) -> list[Any]:
    """Draw ``seeds`` into their places of the array at ``path``; what is told of them."""
    drawn = [draw(seed) for seed in seeds]
    pictures = np.frombuffer(b"".join(p for p, _ in drawn), np.uint8).reshape(-1, SIZE, SIZE, 3)
    each = len(pictures) // len(seeds)
    np.load(path, mmap_mode="r+")[seeds.start * each : seeds.stop * each] = pictures
    return [told for _, told in drawn]


def to_tensor(pictures: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
    """uint8 ``(n, h, w, 3)`` to float ``(n, 3, h, w)`` in [-1, 1]."""
    return torch.from_numpy(np.array(pictures)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
