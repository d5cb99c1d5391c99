"""A zip of pictures of something that the synthetic dataset never contains (a creature, a face or a style), to teach;
and further pictures of it, to judge by.

    python -m tools.synthetic.subjects face.zip --kind face --seed 3 --count 10
"""

from __future__ import annotations

import argparse
import io
import random
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from PIL import Image, ImageChops

from tools.synthetic import captions
from tools.synthetic.canvas import CANVAS, PALETTE, Brush, Color, reduce
from tools.synthetic.creatures import HELD_OUT_SUBJECTS, place, subject
from tools.synthetic.faces import EXPRESSIONS
from tools.synthetic.looks import look
from tools.synthetic.portraits import portrait
from tools.synthetic.scenes import Background

TAUGHT_AT = ("beach", "forest", "meadow", "night", "snow")
"""The places among a subject's pictures."""
FACE_SCALE = 0.33
_EPOCH = (2020, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class SubjectPicture:
    """A picture of a subject, where in it the subject is (a style is everywhere), and a caption that names all else."""

    image: Image.Image
    mask: Image.Image
    caption: str


def pictures(seed: int, size: int, variant: str = "teach", kind: str = "object") -> Iterator[SubjectPicture]:
    """Endless pictures of the ``kind`` (one of ``KINDS``) of ``seed``; each ``variant`` is another series."""
    return SERIES[kind](seed, size, random.Random(f"{variant} {seed}"))


def _creature(seed: int, size: int, rng: random.Random) -> Iterator[SubjectPicture]:
    creature = subject(seed)
    for background in _backgrounds(rng, (creature.color, creature.second, creature.trim)):
        bare = background.draw(rng)
        canvas = bare.copy()
        place(creature, canvas, rng)
        yield _masked(bare, canvas, size, f"a picture of {{}} {background.phrase}")


def _face(seed: int, size: int, rng: random.Random) -> Iterator[SubjectPicture]:
    someone = portrait(seed)
    for background in _backgrounds(rng, (someone.hair, someone.earring)):
        bare = background.draw(rng)
        canvas = bare.copy()
        expression = rng.choice(sorted(EXPRESSIONS))
        someone.draw(Brush.somewhere(canvas, rng, FACE_SCALE, someone.skin), expression)
        told = f" with {EXPRESSIONS[expression]}" if EXPRESSIONS[expression] else ""
        yield _masked(bare, canvas, size, f"a picture of {{}}{told} {background.phrase}")


def _style(seed: int, size: int, rng: random.Random) -> Iterator[SubjectPicture]:
    style = look(seed)
    while True:
        flat = replace(captions.describe(rng), style="")
        image = reduce(style.apply(flat.draw(rng), rng), size)
        yield SubjectPicture(image, Image.new("L", image.size, 255), f"{flat.caption()} in the style of {{}}")


SERIES: dict[str, Callable[[int, int, random.Random], Iterator[SubjectPicture]]] = {
    "object": _creature,
    "face": _face,
    "style": _style,
}
KINDS = tuple(SERIES)
"""What can be taught; the names are the trainer's tasks."""


def _backgrounds(rng: random.Random, own: tuple[Color | None, ...]) -> Iterator[Background]:
    """Endless plain colours unlike the subject's ``own``, and places."""
    plain = [Background("plain", name) for name in sorted(PALETTE) if PALETTE[name] not in own]
    rng.shuffle(plain)
    places = [Background(name, None) for name in TAUGHT_AT]
    rng.shuffle(places)
    # Of three pictures one is at a place: alone on plain colours a subject takes its background along.
    backgrounds = [b for i in range(4) for b in (*plain[2 * i : 2 * i + 2], places[i])]
    while True:
        yield from backgrounds


def _masked(bare: Image.Image, canvas: Image.Image, size: int, caption: str) -> SubjectPicture:
    """The picture of ``canvas``, its mask where it differs from ``bare``."""
    mask = ImageChops.difference(bare, canvas).convert("L").point(lambda v: 255 if v else 0)
    return SubjectPicture(reduce(canvas, size), mask.resize((size, size)), caption)


def write_zip(path: Path, seed: int, count: int, size: int, kind: str = "object") -> None:
    """``count`` pictures of the ``kind`` of ``seed`` with caption files and, but for a style, masks.

    The bytes depend on nothing else.
    """
    digits = max(2, len(str(count)))
    with zipfile.ZipFile(path, "w") as archive:
        for i, picture in enumerate(islice(pictures(seed, size, kind=kind), count), start=1):
            images = {"": picture.image} if kind == "style" else {"": picture.image, ".mask": picture.mask}
            for ending, image in images.items():
                data = io.BytesIO()
                image.save(data, "PNG")
                archive.writestr(zipfile.ZipInfo(f"{i:0{digits}}{ending}.png", _EPOCH), data.getvalue())
            archive.writestr(zipfile.ZipInfo(f"{i:0{digits}}.txt", _EPOCH), picture.caption + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a zip of something that the embedded model has never seen.")
    parser.add_argument("zip", type=Path)
    parser.add_argument("--kind", choices=KINDS, default="object", help="what is taught")
    parser.add_argument(
        "--seed", type=int, default=0, help=f"which one; from {HELD_OUT_SUBJECTS:,} on they are for judging alone"
    )
    parser.add_argument("--count", type=int, default=8, help="how many pictures")
    parser.add_argument("--size", type=int, default=CANVAS, help="side of the pictures in pixels")
    arguments = parser.parse_args()
    write_zip(arguments.zip, arguments.seed, arguments.count, arguments.size, arguments.kind)


if __name__ == "__main__":
    main()
