"""Pictures of a subject that the synthetic dataset never contains (a creature, a face or a style).

One series of them, written as a zip, is for training a LoRA, another for evaluating it.

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
from tools.synthetic.canvas import CANVAS, PALETTE, Brush, Color, downscale
from tools.synthetic.creatures import HELD_OUT_SUBJECTS, draw_at_random, subject
from tools.synthetic.faces import EXPRESSIONS
from tools.synthetic.looks import look
from tools.synthetic.portraits import portrait
from tools.synthetic.scenes import Background

TRAINING_SCENES = ("beach", "forest", "meadow", "night", "snow")
"""The places among the backgrounds of a subject's pictures."""
FACE_SCALE = 0.33
_EPOCH = (2020, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class SubjectPicture:
    """A picture of a subject, the subject's mask (for a style the whole picture), and a caption that names the rest."""

    image: Image.Image
    mask: Image.Image
    caption: str


def pictures(seed: int, size: int, variant: str = "teach", kind: str = "object") -> Iterator[SubjectPicture]:
    """Yield endless pictures of the subject of a ``kind``, one of ``KINDS``, and a ``seed``.

    ``variant`` names the series: "teach" for training, "judge" for evaluation.
    """
    return SERIES[kind](seed, size, random.Random(f"{variant} {seed}"))


def _creature(seed: int, size: int, rng: random.Random) -> Iterator[SubjectPicture]:
    creature = subject(seed)
    for background in _backgrounds(rng, (creature.color, creature.second, creature.trim)):
        bare = background.draw(rng)
        canvas = bare.copy()
        draw_at_random(creature, canvas, rng)
        yield _masked(bare, canvas, size, f"a picture of {{}} {background.phrase}")


def _face(seed: int, size: int, rng: random.Random) -> Iterator[SubjectPicture]:
    someone = portrait(seed)
    for background in _backgrounds(rng, (someone.hair, someone.earring)):
        bare = background.draw(rng)
        canvas = bare.copy()
        expression = rng.choice(sorted(EXPRESSIONS))
        someone.draw(Brush.at_random(canvas, rng, FACE_SCALE, someone.skin), expression)
        mouth = f" with {EXPRESSIONS[expression]}" if EXPRESSIONS[expression] else ""
        yield _masked(bare, canvas, size, f"a picture of {{}}{mouth} {background.phrase}")


def _style(seed: int, size: int, rng: random.Random) -> Iterator[SubjectPicture]:
    style = look(seed)
    while True:
        flat = replace(captions.describe(rng), style="")
        image = downscale(style.apply(flat.draw(rng), rng), size)
        yield SubjectPicture(image, Image.new("L", image.size, 255), f"{flat.caption()} in the style of {{}}")


SERIES: dict[str, Callable[[int, int, random.Random], Iterator[SubjectPicture]]] = {
    "object": _creature,
    "face": _face,
    "style": _style,
}
KINDS = tuple(SERIES)
"""The kinds of subjects, by the trainer's names for the tasks."""


def _backgrounds(rng: random.Random, excluded: tuple[Color | None, ...]) -> Iterator[Background]:
    """Yield endless backgrounds: plain colours other than those ``excluded``, and places."""
    plain = [Background("plain", name) for name in sorted(PALETTE) if PALETTE[name] not in excluded]
    rng.shuffle(plain)
    places = [Background(name, None) for name in TRAINING_SCENES]
    rng.shuffle(places)
    # One picture in three is at a place: from plain colours alone, a LoRA learns the background with the subject.
    backgrounds = [b for i in range(4) for b in (*plain[2 * i : 2 * i + 2], places[i])]
    while True:
        yield from backgrounds


def _masked(bare: Image.Image, canvas: Image.Image, size: int, caption: str) -> SubjectPicture:
    """Return the picture of ``canvas`` with a mask of the pixels in which it differs from ``bare``."""
    mask = ImageChops.difference(bare, canvas).convert("L").point(lambda v: 255 if v else 0)
    return SubjectPicture(downscale(canvas, size), mask.resize((size, size)), caption)


def write_zip(path: Path, seed: int, count: int, size: int, kind: str = "object") -> None:
    """Write ``count`` pictures of a subject with caption files and, except for a style, masks.

    The same arguments give the same bytes.
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
    parser = argparse.ArgumentParser(
        description="Write a zip of pictures of a subject that the embedded model has never seen."
    )
    parser.add_argument("zip", type=Path)
    parser.add_argument("--kind", choices=KINDS, default="object", help="kind of subject")
    parser.add_argument(
        "--seed", type=int, default=0, help=f"number of the subject; from {HELD_OUT_SUBJECTS:,} on for evaluation only"
    )
    parser.add_argument("--count", type=int, default=8, help="number of pictures")
    parser.add_argument("--size", type=int, default=CANVAS, help="side of the pictures in pixels")
    arguments = parser.parse_args()
    write_zip(arguments.zip, arguments.seed, arguments.count, arguments.size, arguments.kind)


if __name__ == "__main__":
    main()
