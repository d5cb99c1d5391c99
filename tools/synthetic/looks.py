"""Looks that the synthetic dataset never contains, applied to a finished picture: the kind of style a user teaches."""

from __future__ import annotations

import colorsys
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tools.synthetic.canvas import Color
from tools.synthetic.styles import HALF, array, blotches, canvas_of, contours, halved


@dataclass(frozen=True)
class Look:
    """One style: its kind, its inks from dark to light, and the pitch (half-canvas pixels) and angle of its grain."""

    kind: str
    dark: Color
    middle: Color
    light: Color
    pitch: float
    angle: float

    @staticmethod
    def sample(rng: random.Random) -> Look:
        return Look(
            kind=rng.choice(sorted(LOOKS)),
            dark=_ink(rng, (0.5, 1.0), (0.12, 0.38)),
            middle=_ink(rng, (0.6, 1.0), (0.65, 0.9)),
            light=_ink(rng, (0.05, 0.3), (0.9, 1.0)),
            pitch=rng.uniform(10, 15),
            angle=rng.uniform(0, np.pi / 2),
        )

    def apply(self, canvas: Image.Image, rng: random.Random) -> Image.Image:
        """``canvas`` in this look; what is uneven in it is drawn from ``rng``."""
        return canvas_of(LOOKS[self.kind](self, halved(canvas), rng))

    def grid(self, turn: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates along and across the grain, in pitches: two float ``(HALF, HALF)``."""
        y, x = np.mgrid[0:HALF, 0:HALF].astype(np.float32) / self.pitch
        cos, sin = np.cos(self.angle + turn), np.sin(self.angle + turn)
        return x * cos + y * sin, y * cos - x * sin


def look(seed: int) -> Look:
    """The style of ``seed``."""
    return Look.sample(random.Random(f"look {seed}"))


def _ink(rng: random.Random, saturation: tuple[float, float], value: tuple[float, float]) -> Color:
    red, green, blue = colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value))
    return round(red * 255), round(green * 255), round(blue * 255)


def _ground(color: Color) -> np.ndarray:
    """A half canvas of one colour."""
    return np.broadcast_to(np.array(color, np.float32), (HALF, HALF, 3))


def _over(below: np.ndarray, above: np.ndarray, share: np.ndarray) -> np.ndarray:
    """``above`` laid over ``below`` where ``share``, ``(h, w)`` in any range, is clipped to 0 to 1."""
    opacity = np.clip(share, 0, 1)[..., None]
    return below * (1 - opacity) + above * opacity


def _tinted(pixels: np.ndarray, ink: Color) -> np.ndarray:
    """``pixels`` with a third of ``ink``, so that the style has colours of its own."""
    return pixels * 0.67 + np.array(ink, np.float32) * 0.33


def _darkness(picture: Image.Image) -> np.ndarray:
    """How dark each pixel is: float ``(h, w)`` in 0 to 1."""
    return 1 - np.asarray(picture.convert("L"), np.float32) / 255


def _per_cell(pixels: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Each pixel replaced by the mean of its cell; ``cells`` numbers them, ``(h, w)``."""
    flat = cells.ravel()
    count = np.maximum(np.bincount(flat), 1)
    means = [np.bincount(flat, pixels[..., i].ravel()) / count for i in range(3)]
    return np.stack(means, axis=-1)[cells].astype(np.float32)


def _numbered(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A number for each whole cell of the coordinates ``u``, ``v``."""
    column, row = np.floor(u).astype(int), np.floor(v).astype(int)
    return (column - column.min()) + (row - row.min()) * (int(np.ptp(column)) + 1)


def halftone(own: Look, picture: Image.Image, rng: random.Random) -> np.ndarray:
    """Dots of two inks, larger where it is darker: one follows the light, the other the warmth."""
    drawn = _ground(own.light)
    warmth = 1 - array(picture)[..., 2] / 255
    for ink, amount, turn in ((own.middle, warmth, 0.8), (own.dark, _darkness(picture), 0.0)):
        u, v = own.grid(turn)
        distance = np.hypot(u % 1 - 0.5, v % 1 - 0.5)
        drawn = _over(drawn, _ground(ink), (0.68 * amount - distance) * own.pitch)
    return drawn


def hatched(own: Look, picture: Image.Image, rng: random.Random) -> np.ndarray:
    """Lines of one ink, broader where it is darker, crossed by lines of another where it is dark."""
    darkness, drawn = _darkness(picture), _ground(own.light)
    for ink, amount, turn in ((own.middle, darkness, 0.0), (own.dark, darkness - 0.35, np.pi / 2)):
        across = np.abs(own.grid(turn)[1] % 1 - 0.5)
        drawn = _over(drawn, _ground(ink), (0.45 * amount + 0.04 - across) * own.pitch)
    return drawn


def engraved(own: Look, picture: Image.Image, rng: random.Random) -> np.ndarray:
    """Rings around one corner, broader where it is darker, over a wash of the colours."""
    y, x = np.mgrid[0:HALF, 0:HALF].astype(np.float32)
    distance = np.hypot(x + HALF * np.cos(own.angle) - HALF / 2, y + HALF * np.sin(own.angle) - HALF / 2) / own.pitch
    across = np.abs(distance % 1 - 0.5)
    wash = _over(array(picture), _ground(own.light), np.full((HALF, HALF), 0.6, np.float32))
    return _over(wash, _ground(own.dark), (0.5 * _darkness(picture) + 0.06 - across) * own.pitch)


def glass(own: Look, picture: Image.Image, rng: random.Random) -> np.ndarray:
    """Stained glass: cells of one bright colour each, lead between them, tinted light behind."""
    spacing = own.pitch * 1.35
    steps = np.arange(spacing / 2, HALF + spacing, spacing)
    noise = np.random.default_rng(rng.getrandbits(32))
    seeds = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    seeds += noise.uniform(-0.4, 0.4, seeds.shape) * spacing
    y, x = np.mgrid[0:HALF, 0:HALF].astype(np.float32)
    distance = (x[..., None] - seeds[:, 0]) ** 2 + (y[..., None] - seeds[:, 1]) ** 2
    cells = distance.argmin(axis=-1)
    panes = _per_cell(array(picture), cells)
    panes += (panes - panes.mean(axis=-1, keepdims=True)) * 0.5
    edge = np.zeros((HALF, HALF), bool)
    edge[1:] |= cells[1:] != cells[:-1]
    edge[:, 1:] |= cells[:, 1:] != cells[:, :-1]
    thick = edge.copy()
    thick[:-1] |= edge[1:]
    thick[:, :-1] |= edge[:, 1:]
    return _over(_tinted(panes, own.middle), _ground(own.dark), thick.astype(np.float32))


def toned(own: Look, picture: Image.Image, rng: random.Random) -> np.ndarray:
    """A gradient of three inks in place of the light and shade."""
    darkness = _darkness(picture)
    lit = _over(_ground(own.light), _ground(own.middle), darkness * 2)
    return _over(lit, _ground(own.dark), darkness * 2 - 1)


def knitted(own: Look, picture: Image.Image, rng: random.Random) -> np.ndarray:
    """Rows of V-shaped stitches, each of one colour, from yarns that were dyed together."""
    y, x = np.mgrid[0:HALF, 0:HALF].astype(np.float32) / (own.pitch * 0.75)
    lean = np.abs(x % 1 - 0.5)
    row = y + lean
    stitches = _tinted(_per_cell(array(picture), _numbered(x, row)), own.middle)
    shadow = np.maximum(0.5 - row % 1 * 1.8, (0.5 - np.minimum(x % 1, 1 - x % 1) * 5) * 0.6)
    return _over(stitches, _ground(own.dark), shadow)


def chalked(own: Look, picture: Image.Image, rng: random.Random) -> np.ndarray:
    """Chalk lines and smudges of two colours on a slate."""
    smudge = 0.55 * (1 - _darkness(picture)) * blotches(rng, 24)[..., 0]
    drawn = _over(_ground(own.dark), _ground(own.middle), smudge)
    return _over(drawn, _ground(own.light), contours(picture)[..., 0] * (0.5 + blotches(rng, 40)[..., 0]))


def beaded(own: Look, picture: Image.Image, rng: random.Random) -> np.ndarray:
    """Round beads, each of one colour, on a ground of one ink."""
    u, v = own.grid()
    u = u + 0.5 * (np.floor(v) % 2)
    beads = _per_cell(array(picture), _numbered(u, v))
    distance = np.hypot(u % 1 - 0.5, v % 1 - 0.5)
    return _over(_ground(own.middle), beads, (0.46 - distance) * own.pitch)


LOOKS: dict[str, Callable[[Look, Image.Image, random.Random], np.ndarray]] = {
    "beaded": beaded,
    "chalked": chalked,
    "engraved": engraved,
    "glass": glass,
    "halftone": halftone,
    "hatched": hatched,
    "knitted": knitted,
    "toned": toned,
}
