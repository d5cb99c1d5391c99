"""Pools of pictures: datasets drawn by all cores into arrays on disk, each picture from its own seed."""

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

from tools.synthetic import captions, subjects, textures
from tools.synthetic.canvas import downscale
from tools.synthetic.creatures import HELD_OUT_SUBJECTS

SIZE = 64
"""Side of the embedded model's pictures in pixels."""
CHUNK = 256
"""Number of seeds in a worker's unit of work."""

Draw = Callable[[int], tuple[bytes, Any]]
"""Draws the picture, or the pictures, of a seed: their bytes, and their metadata as JSON can hold it."""
Pool = tuple[np.ndarray, list[Any]]
"""Pictures, uint8 ``(n, 64, 64, 3)``, and the metadata of each seed."""


def _draw_synthetic(seed: int) -> tuple[bytes, tuple[str, str]]:
    sample = captions.sample(random.Random(f"world {seed}"))
    return downscale(sample.picture, SIZE).tobytes(), (sample.caption, sample.description.group)


def _draw_variety(seed: int) -> tuple[bytes, str]:
    rng = random.Random(f"variety {seed}")
    if rng.random() < 0.35:
        return downscale(captions.sample(rng).picture, SIZE).tobytes(), ""
    return downscale(textures.sample(rng), SIZE).tobytes(), ""


def _draw_unseen(kind: str, seed: int) -> tuple[bytes, str]:
    return next(subjects.pictures(HELD_OUT_SUBJECTS + seed, SIZE, "judge", kind)).image.tobytes(), ""


_DRAW: dict[str, Draw] = {
    "synthetic": _draw_synthetic,
    "variety": _draw_variety,
    **{f"unseen-{kind}s": partial(_draw_unseen, kind) for kind in subjects.KINDS},
}


def load_pool(kind: str, count: int, folder: Path) -> Pool:
    """Return ``count`` pictures of ``kind``, a key of ``_DRAW``, which are drawn once and cached in ``folder``.

    The metadata of "synthetic" are pairs of a caption and its description's group, one of ``GROUPS``.
    """
    return start_pool(kind, count, folder)()


def start_pool(kind: str, count: int, folder: Path) -> Callable[[], Pool]:
    """Start to draw a pool in background processes; the function returned waits for it, and returns it."""
    return _start(_DRAW[kind], count, folder / f"{kind}-{count}.npy")


def draw_pool(draw: Draw, count: int, path: Path) -> Pool:
    """Return the pictures and metadata of the seeds 0 to ``count - 1``, drawn once and cached at ``path``.

    ``draw`` is a function of a module, and returns equally many pictures for each seed.
    """
    return _start(draw, count, path)()


def _start(draw: Draw, count: int, path: Path) -> Callable[[], Pool]:
    def load() -> Pool:
        return np.load(path, mmap_mode="r"), json.loads(path.with_suffix(".json").read_text())

    if path.exists():
        return load
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npy")
    per_seed = len(draw(0)[0]) // (3 * SIZE**2)
    # The workers write into the file themselves: 400,000 pictures would be 5 GB for one process to read from a pipe.
    np.lib.format.open_memmap(part, "w+", np.uint8, (count * per_seed, SIZE, SIZE, 3))
    # Forked, at once and so before a GPU is used: spawned processes would import PyTorch and more, each of them.
    workers = ProcessPoolExecutor(mp_context=multiprocessing.get_context("fork"), initializer=os.nice, initargs=(5,))
    chunks = [range(start, min(count, start + CHUNK)) for start in range(0, count, CHUNK)]
    results = workers.map(partial(_draw_chunk, draw, part), chunks)

    def wait() -> Pool:
        with workers:
            path.with_suffix(".json").write_text(json.dumps([one for chunk in results for one in chunk]))
        part.replace(path)
        return load()

    return cache(wait)


def _draw_chunk(draw: Draw, path: Path, seeds: range) -> list[Any]:
    """Draw ``seeds`` into their rows of the array at ``path``, and return their metadata."""
    drawn = [draw(seed) for seed in seeds]
    pictures = np.frombuffer(b"".join(data for data, _ in drawn), np.uint8).reshape(-1, SIZE, SIZE, 3)
    per_seed = len(pictures) // len(seeds)
    np.load(path, mmap_mode="r+")[seeds.start * per_seed : seeds.stop * per_seed] = pictures
    return [metadata for _, metadata in drawn]


def to_tensor(pictures: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
    """Convert uint8 ``(n, h, w, 3)`` to float ``(n, 3, h, w)`` in [-1, 1]."""
    return torch.from_numpy(np.array(pictures)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
