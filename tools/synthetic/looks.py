"""Drawing styles that the synthetic dataset never contains, applied to a finished picture, to train a LoRA on."""

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
    """One style: its kind, three ink colours, and the pitch (half-canvas pixels) and angle (radians) of its grain."""

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
        """Return ``canvas`` redrawn in this look; its irregularities come from ``rng``."""
        return canvas_of(LOOKS[self.kind](self, halved(canvas), rng))

    def grid(self, turn: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Return the coordinates along and across the grain, in pitches: two float ``(HALF, HALF)``."""
        y, x = np.mgrid[0:HALF, 0:HALF].astype(np.float32) / self.pitch
        cos, sin = np.cos(self.angle + turn), np.sin(self.angle + turn)
        return x * cos + y * sin, y * cos - x * sin


def look(seed: int) -> Look:
    """Return the look of ``seed``."""
    return Look.sample(random.Random(f"look {seed}"))


def _ink(rng: random.Random, saturation: tuple[float, float], value: tuple[float, float]) -> Color:
    red, green, blue = colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value))
    return round(red * 255), round(green * 255), round(blue * 255)


def _filled(color: Color) -> np.ndarray:
    """Return a half canvas of one colour."""
    return np.broadcast_to(np.array(color, np.float32), (HALF, HALF, 3))


def _over(below: np.ndarray, above: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Composite ``above`` over ``below`` with the opacity ``share`` ``(h, w)``, which is clipped to 0 to 1."""
    opacity = np.clip(share, 0, 1)[..., None]
    return below * (1 - opacity) + above * opacity


def _tinted(pixels: np.ndarray, ink: Color) -> np.ndarray:
    """Mix a third of ``ink`` into ``pixels``, so that the style determines the colours too."""
    return pixels * 0.67 + np.array(ink, np.float32) * 0.33


def _darkness(picture: Image.Image) -> np.ndarray:
    """Return the darkness of each pixel: float ``(h, w)`` in 0 to 1."""
    return 1 - np.asarray(picture.convert("L"), np.float32) / 255


def _per_cell(pixels: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Replace each pixel by the mean of its cell; ``cells`` ``(h, w)`` holds the cells' indices."""
    flat = cells.ravel()
    count = np.maximum(np.bincount(flat), 1)
    means = [np.bincount(flat, pixels[..., i].ravel()) / count for i in range(3)]
    return np.stack(means, axis=-1)[cells].astype(np.float32)


def _cell_indices(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return the index of each pixel's unit cell in the coordinates ``u``, ``v``."""
    column, row = np.floor(u).astype(int), np.floor(v).astype(int)
    return (column - column.min()) + (row - row.min()) * (int(np.ptp(column)) + 1)


def halftone(look: Look, picture: Image.Image, rng: random.Random) -> np.ndarray:
    """Draw dots of two inks: one ink's dots grow with the darkness, the other's with the lack of blue."""
    drawn = _filled(look.light)
    warmth = 1 - array(picture)[..., 2] / 255
    for ink, amount, turn in ((look.middle, warmth, 0.8), (look.dark, _darkness(picture), 0.0)):
        u, v = look.grid(turn)
        distance = np.hypot(u % 1 - 0.5, v % 1 - 0.5)
        drawn = _over(drawn, _filled(ink), (0.68 * amount - distance) * look.pitch)
    return drawn


def hatched(look: Look, picture: Image.Image, rng: random.Random) -> np.ndarray:
    """Draw lines of one ink, broader where it is darker, crossed by lines of another where it is dark."""
    darkness, drawn = _darkness(picture), _filled(look.light)
    for ink, amount, turn in ((look.middle, darkness, 0.0), (look.dark, darkness - 0.35, np.pi / 2)):
        across = np.abs(look.grid(turn)[1] % 1 - 0.5)
        drawn = _over(drawn, _filled(ink), (0.45 * amount + 0.04 - across) * look.pitch)
    return drawn


def engraved(look: Look, picture: Image.Image, rng: random.Random) -> np.ndarray:
    """Draw concentric arcs, broader where it is darker, over a pale wash of the colours."""
    y, x = np.mgrid[0:HALF, 0:HALF].astype(np.float32)
    distance = np.hypot(x + HALF * np.cos(look.angle) - HALF / 2, y + HALF * np.sin(look.angle) - HALF / 2) / look.pitch
    across = np.abs(distance % 1 - 0.5)
    wash = _over(array(picture), _filled(look.light), np.full((HALF, HALF), 0.6, np.float32))
    return _over(wash, _filled(look.dark), (0.5 * _darkness(picture) + 0.06 - across) * look.pitch)


def glass(look: Look, picture: Image.Image, rng: random.Random) -> np.ndarray:
    """Draw stained glass: Voronoi cells of one bright, tinted colour each, with dark lines between them."""
    spacing = look.pitch * 1.35
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
    return _over(_tinted(panes, look.middle), _filled(look.dark), thick.astype(np.float32))


def toned(look: Look, picture: Image.Image, rng: random.Random) -> np.ndarray:
    """Map the darkness to a gradient of three inks."""
    darkness = _darkness(picture)
    lit = _over(_filled(look.light), _filled(look.middle), darkness * 2)
    return _over(lit, _filled(look.dark), darkness * 2 - 1)


def knitted(look: Look, picture: Image.Image, rng: random.Random) -> np.ndarray:
    """Draw rows of V-shaped stitches of one tinted colour each."""
    y, x = np.mgrid[0:HALF, 0:HALF].astype(np.float32) / (look.pitch * 0.75)
    lean = np.abs(x % 1 - 0.5)
    row = y + lean
    stitches = _tinted(_per_cell(array(picture), _cell_indices(x, row)), look.middle)
    shadow = np.maximum(0.5 - row % 1 * 1.8, (0.5 - np.minimum(x % 1, 1 - x % 1) * 5) * 0.6)
    return _over(stitches, _filled(look.dark), shadow)


def chalked(look: Look, picture: Image.Image, rng: random.Random) -> np.ndarray:
    """Draw chalk contours and smudges of two colours on a slate."""
    smudge = 0.55 * (1 - _darkness(picture)) * blotches(rng, 24)[..., 0]
    drawn = _over(_filled(look.dark), _filled(look.middle), smudge)
    return _over(drawn, _filled(look.light), contours(picture)[..., 0] * (0.5 + blotches(rng, 40)[..., 0]))


def beaded(look: Look, picture: Image.Image, rng: random.Random) -> np.ndarray:
    """Draw round beads of one colour each on a background of one ink."""
    u, v = look.grid()
    u = u + 0.5 * (np.floor(v) % 2)
    beads = _per_cell(array(picture), _cell_indices(u, v))
    distance = np.hypot(u % 1 - 0.5, v % 1 - 0.5)
    return _over(_filled(look.middle), beads, (0.46 - distance) * look.pitch)


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
