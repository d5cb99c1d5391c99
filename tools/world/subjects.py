"""Zips of a subject that the world never contains, to teach; and further pictures of it, to judge by."""

from __future__ import annotations

import argparse
import io
import random
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageChops

from tools.world.canvas import PALETTE, reduce
from tools.world.creatures import place, subject
from tools.world.scenes import Background

TAUGHT_AT = ("beach", "forest", "meadow", "night", "snow")
"""The places among a subject's pictures."""
_EPOCH = (2020, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class SubjectPicture:
    """A picture of a subject, where in it the subject is, and a caption that names all else."""

    image: Image.Image
    mask: Image.Image
    caption: str


def pictures(seed: int, size: int, variant: str = "teach") -> Iterator[SubjectPicture]:
    """Endless pictures of the subject of ``seed``; each ``variant`` is another series."""
    creature, rng = subject(seed), random.Random(f"{variant} {seed}")
    own = {name for name, color in PALETTE.items() if color in (creature.color, creature.second, creature.trim)}
    plain = [Background("plain", name) for name in sorted(PALETTE) if name not in own]
    rng.shuffle(plain)
    places = [Background(name, None) for name in TAUGHT_AT]
    rng.shuffle(places)
    # Of three pictures one is at a place: alone on plain colours a subject takes its background along.
    backgrounds = [b for i in range(4) for b in (*plain[2 * i : 2 * i + 2], places[i])]
    while True:
        for background in backgrounds:
            bare = background.draw(rng)
            canvas = bare.copy()
            place(creature, canvas, rng)
            mask = ImageChops.difference(bare, canvas).convert("L").point(lambda v: 255 if v else 0)
            yield SubjectPicture(
                reduce(canvas, size), mask.resize((size, size)), f"a picture of {{}} {background.phrase}"
            )


def write_zip(path: Path, seed: int, count: int, size: int) -> None:
    """``count`` pictures of the subject of ``seed``, with masks and caption files; the bytes depend on nothing else."""
    with zipfile.ZipFile(path, "w") as archive:
        for i, picture in zip(range(1, count + 1), pictures(seed, size), strict=False):
            for ending, image in (("", picture.image), (".mask", picture.mask)):
                data = io.BytesIO()
                image.save(data, "PNG")
                archive.writestr(zipfile.ZipInfo(f"{i:02}{ending}.png", _EPOCH), data.getvalue())
            archive.writestr(zipfile.ZipInfo(f"{i:02}.txt", _EPOCH), picture.caption + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a zip of a subject that the embedded model has never seen.")
    parser.add_argument("zip", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="which subject")
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--size", type=int, default=256, help="side of the pictures in pixels")
    arguments = parser.parse_args()
    write_zip(arguments.zip, arguments.seed, arguments.count, arguments.size)


if __name__ == "__main__":
    main()
