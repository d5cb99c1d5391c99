"""The things of the synthetic dataset, each a function that draws one in the colour of a brush."""

from __future__ import annotations

import math
from collections.abc import Callable

from tools.synthetic.canvas import BLACK, WHITE, Brush, Point

GLASS = (190, 225, 245)
WOOD = (120, 75, 40)
GREEN = (50, 140, 60)
SLIME = (225, 195, 150)
TURTLE = (120, 175, 90)


def ring_of(n: int, radius: float, phase: float = -90.0) -> list[Point]:
    """Return ``n`` points on a circle, the first at ``phase`` degrees."""
    angles = [math.radians(phase + 360.0 * i / n) for i in range(n)]
    return [(radius * math.cos(a), radius * math.sin(a)) for a in angles]


def square(b: Brush) -> None:
    b.box(0, 0, 0.8, 0.8)


def circle(b: Brush) -> None:
    b.ellipse(0, 0, 0.88, 0.88)


def triangle(b: Brush) -> None:
    b.polygon([(0, -0.95), (0.95, 0.75), (-0.95, 0.75)])


def star(b: Brush) -> None:
    outer, inner = ring_of(5, 1.0), ring_of(5, 0.42, -54)
    b.polygon([p for pair in zip(outer, inner, strict=True) for p in pair])


def heart(b: Brush) -> None:
    turns = [math.radians(d) for d in range(0, 360, 8)]
    b.polygon(
        [
            (math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16)
            for t in turns
        ]
    )


def moon(b: Brush) -> None:
    outer = [(0.9 * math.cos(a), 0.9 * math.sin(a)) for a in (math.radians(d) for d in range(50, 311, 10))]
    (x0, y0), y1 = outer[-1], outer[0][1]
    inner = [(x0 - 0.62 * math.sin(math.pi * t / 12), y0 + (y1 - y0) * t / 12) for t in range(13)]
    b.polygon(outer + inner)


def flower(b: Brush) -> None:
    b.line([(0, 0.1), (0, 1.0)], 0.12, GREEN)
    b.ellipse(0.25, 0.72, 0.24, 0.1, GREEN)
    for x, y in ring_of(6, 0.42):
        b.ellipse(x, y - 0.3, 0.27, 0.27)
    b.ellipse(0, -0.3, 0.24, 0.24, (250, 205, 60) if b.fill[2] > 90 or b.fill[0] < 200 else WOOD)


def tree(b: Brush) -> None:
    b.box(0, 0.75, 0.13, 0.25, WOOD)
    b.polygon([(0, -1), (0.5, -0.25), (-0.5, -0.25)])
    b.polygon([(0, -0.6), (0.68, 0.2), (-0.68, 0.2)])
    b.polygon([(0, -0.15), (0.85, 0.6), (-0.85, 0.6)])


def house(b: Brush) -> None:
    b.box(0, 0.4, 0.7, 0.5)
    b.polygon([(0, -0.9), (0.95, -0.1), (-0.95, -0.1)], b.dark)
    b.box(0, 0.6, 0.16, 0.3, WOOD)
    b.box(-0.42, 0.3, 0.15, 0.15, GLASS)
    b.box(0.42, 0.3, 0.15, 0.15, GLASS)


def car(b: Brush) -> None:
    b.polygon([(-0.55, -0.45), (0.3, -0.45), (0.6, 0), (-0.75, 0)])
    b.polygon([(-0.45, -0.35), (-0.1, -0.35), (-0.1, -0.03), (-0.58, -0.03)], GLASS)
    b.polygon([(0.02, -0.35), (0.24, -0.35), (0.44, -0.03), (0.02, -0.03)], GLASS)
    b.box(0, 0.2, 0.98, 0.24)
    for x in (-0.5, 0.5):
        b.ellipse(x, 0.45, 0.25, 0.25, BLACK)
        b.ellipse(x, 0.45, 0.1, 0.1, (170, 170, 175))


def boat(b: Brush) -> None:
    b.polygon([(-0.95, 0.35), (0.95, 0.35), (0.6, 0.85), (-0.6, 0.85)])
    b.box(0, -0.25, 0.05, 0.6, WOOD)
    b.polygon([(0.1, -0.85), (0.75, 0.2), (0.1, 0.2)], WHITE)
    b.polygon([(-0.1, -0.65), (-0.6, 0.2), (-0.1, 0.2)], b.light)


def fish(b: Brush) -> None:
    b.ellipse(-0.15, 0, 0.72, 0.45)
    b.polygon([(0.42, 0), (1.0, -0.45), (0.85, 0), (1.0, 0.45)])
    b.polygon([(-0.1, -0.35), (0.2, -0.7), (0.3, -0.3)], b.dark)
    b.ellipse(-0.52, -0.1, 0.12, 0.12, WHITE)
    b.ellipse(-0.54, -0.1, 0.06, 0.06, BLACK)


def mug(b: Brush) -> None:
    b.arc((0.55, 0.02, 0.38, 0.42), 0, 360, 0.15)
    b.box(-0.12, 0.05, 0.58, 0.72)
    b.ellipse(-0.12, -0.67, 0.58, 0.16, b.dark)


def apple(b: Brush) -> None:
    b.ellipse(-0.3, 0.2, 0.55, 0.65)
    b.ellipse(0.3, 0.2, 0.55, 0.65)
    b.line([(0, -0.35), (0.08, -0.85)], 0.1, WOOD)
    b.ellipse(0.36, -0.68, 0.28, 0.13, GREEN)


def mushroom(b: Brush) -> None:
    b.polygon([(-0.22, 0), (0.22, 0), (0.3, 0.9), (-0.3, 0.9)], (240, 228, 205))
    b.dome(0, 0.05, 0.92, 0.95)
    for x, y, r in ((-0.42, -0.3, 0.15), (0.1, -0.55, 0.17), (0.5, -0.2, 0.13)):
        b.ellipse(x, y, r, r, WHITE if sum(b.fill) < 660 else (200, 60, 60))


def balloon(b: Brush) -> None:
    for x in (-0.16, 0.16):
        b.line([(x * 2, 0.25), (x, 0.75)], 0.05, WOOD)
    b.ellipse(0, -0.3, 0.74, 0.7)
    b.polygon([(-0.6, 0.1), (0.6, 0.1), (0.2, 0.52), (-0.2, 0.52)])
    b.ellipse(0, -0.3, 0.26, 0.7, b.light)
    b.box(0, 0.84, 0.22, 0.16, WOOD)


def umbrella(b: Brush) -> None:
    b.line([(0, -0.2), (0, 0.75)], 0.09, WOOD)
    b.arc((0.15, 0.75, 0.15, 0.18), 0, 180, 0.09, WOOD)
    b.dome(0, 0, 0.95, 0.9)
    b.dome(0, 0, 0.35, 0.9, b.dark)


def cat(b: Brush) -> None:
    b.polygon([(-0.75, -0.85), (-0.15, -0.5), (-0.7, -0.1)])
    b.polygon([(0.75, -0.85), (0.15, -0.5), (0.7, -0.1)])
    b.ellipse(0, 0.1, 0.8, 0.7)
    for x in (-0.3, 0.3):
        b.ellipse(x, 0, 0.15, 0.17, WHITE)
        b.ellipse(x, 0.02, 0.07, 0.13, BLACK)
    b.polygon([(-0.1, 0.27), (0.1, 0.27), (0, 0.4)], (240, 130, 150))
    for side in (-1, 1):
        b.line([(side * 0.3, 0.4), (side * 0.85, 0.3)], 0.04, b.dark)
        b.line([(side * 0.3, 0.48), (side * 0.85, 0.55)], 0.04, b.dark)


def bird(b: Brush) -> None:
    b.polygon([(0.35, 0.1), (1.0, -0.2), (0.95, 0.25)], b.dark)
    b.ellipse(0.05, 0.2, 0.6, 0.45)
    b.ellipse(-0.45, -0.25, 0.36, 0.34)
    b.polygon([(-0.75, -0.32), (-1.05, -0.17), (-0.72, -0.1)], (240, 150, 30))
    b.ellipse(-0.52, -0.32, 0.08, 0.08, WHITE)
    b.ellipse(-0.53, -0.32, 0.045, 0.045, BLACK)
    b.ellipse(0.15, 0.18, 0.36, 0.2, b.dark)
    for x in (-0.1, 0.15):
        b.line([(x, 0.6), (x, 0.95)], 0.06, (230, 140, 40))


def rocket(b: Brush) -> None:
    b.polygon([(-0.2, 0.55), (0.2, 0.55), (0, 1.05)], (250, 170, 40))
    b.polygon([(-0.3, 0.1), (-0.65, 0.65), (-0.3, 0.55)], b.dark)
    b.polygon([(0.3, 0.1), (0.65, 0.65), (0.3, 0.55)], b.dark)
    b.ellipse(0, -0.2, 0.36, 0.8)
    b.box(0, 0.35, 0.3, 0.22)
    b.ellipse(0, -0.25, 0.18, 0.18, GLASS)


def butterfly(b: Brush) -> None:
    for side in (-1, 1):
        b.ellipse(side * 0.48, -0.35, 0.45, 0.45)
        b.ellipse(side * 0.38, 0.4, 0.34, 0.36, b.dark)
        b.ellipse(side * 0.5, -0.38, 0.16, 0.16, b.light)
        b.line([(0, -0.5), (side * 0.25, -0.95)], 0.05, BLACK)
    b.ellipse(0, 0, 0.1, 0.65, BLACK)


def key(b: Brush) -> None:
    b.arc((0, -0.52, 0.46, 0.46), 0, 360, 0.22)
    b.box(0, 0.45, 0.12, 0.53)
    b.box(0.28, 0.86, 0.24, 0.12)
    b.box(0.24, 0.5, 0.18, 0.1)


def guitar(b: Brush) -> None:
    b.box(0, -0.4, 0.09, 0.5, WOOD)
    b.box(0, -0.88, 0.17, 0.12, b.dark)
    b.ellipse(0, 0.12, 0.4, 0.32)
    b.ellipse(0, 0.6, 0.58, 0.4)
    b.ellipse(0, 0.3, 0.17, 0.17, BLACK)
    b.box(0, 0.74, 0.24, 0.06, BLACK)


def ladder(b: Brush) -> None:
    for side in (-1, 1):
        b.line([(side * 0.3, -1), (side * 0.5, 1)], 0.17)
    for y in (-0.7, -0.28, 0.14, 0.56):
        b.box(0, y, 0.4 + 0.1 * y, 0.08)


def cactus(b: Brush) -> None:
    for side, low, high in ((-1, 0.2, -0.35), (1, -0.05, -0.6)):
        b.line([(0, low), (side * 0.6, low), (side * 0.6, high)], 0.24)
        b.ellipse(side * 0.6, high, 0.12, 0.12)
    b.box(0, 0, 0.22, 0.7)
    b.ellipse(0, -0.7, 0.22, 0.24)
    for x in (-0.08, 0.08):
        b.line([(x, -0.7), (x, 0.6)], 0.04, b.dark)
    b.polygon([(-0.5, 0.5), (0.5, 0.5), (0.36, 1), (-0.36, 1)], WOOD)


def snail(b: Brush) -> None:
    b.line([(-0.7, 0.75), (-0.78, -0.2)], 0.24, SLIME)
    b.ellipse(0, 0.76, 0.98, 0.16, SLIME)
    for x in (-0.92, -0.66):
        b.line([(-0.78, -0.1), (x, -0.5)], 0.07, SLIME)
        b.ellipse(x, -0.52, 0.08, 0.08, BLACK)
    b.ellipse(0.2, 0.1, 0.66, 0.62)
    for radius in (0.42, 0.18):
        b.arc((0.2, 0.1, radius, radius), 0, 360, 0.1, b.dark)


def clock(b: Brush) -> None:
    for side in (-1, 1):
        b.line([(side * 0.3, 0.5), (side * 0.62, 0.98)], 0.16, b.dark)
        b.ellipse(side * 0.52, -0.68, 0.3, 0.27, b.dark)
    b.ellipse(0, 0.12, 0.78, 0.78)
    b.ellipse(0, 0.12, 0.56, 0.56, WHITE)
    b.line([(0, -0.26), (0, 0.12), (0.28, 0.3)], 0.11, BLACK)


def crown(b: Brush) -> None:
    peaks = [(-0.95, -0.5), (-0.5, 0.05), (0, -0.75), (0.5, 0.05), (0.95, -0.5)]
    b.polygon([*peaks, (0.75, 0.7), (-0.75, 0.7)])
    for x, y in peaks[::2]:
        b.ellipse(x * 0.96, y, 0.14, 0.14)
    b.box(0, 0.6, 0.75, 0.14, b.dark)
    for x in (-0.45, 0, 0.45):
        b.ellipse(x, 0.6, 0.1, 0.1, WHITE)


def chair(b: Brush) -> None:
    b.box(-0.5, 0, 0.11, 1)
    b.box(0.5, 0.6, 0.11, 0.4)
    b.box(0.05, 0.22, 0.62, 0.13)
    for y in (-0.85, -0.45):
        b.box(-0.16, y, 0.28, 0.11, b.dark)


def plane(b: Brush) -> None:
    for side in (-1, 1):
        b.polygon([(0, -0.3), (side, 0.2), (side, 0.44), (0, 0.2)])
        b.polygon([(0, 0.62), (side * 0.42, 0.82), (side * 0.42, 0.98), (0, 0.86)], b.dark)
    b.ellipse(0, 0, 0.19, 0.98)
    b.ellipse(0, -0.68, 0.1, 0.12, GLASS)


def rabbit(b: Brush) -> None:
    for side in (-1, 1):
        b.ellipse(side * 0.22, -0.62, 0.15, 0.4)
        b.ellipse(side * 0.22, -0.6, 0.07, 0.28, (245, 175, 190))
        b.ellipse(side * 0.32, 0.88, 0.24, 0.13, b.dark)
    b.ellipse(0, 0.5, 0.52, 0.46)
    b.ellipse(0, 0.55, 0.26, 0.3, b.light)
    b.ellipse(0, -0.12, 0.44, 0.36)
    for x in (-0.18, 0.18):
        b.ellipse(x, -0.16, 0.08, 0.09, BLACK)
    b.ellipse(0, 0, 0.08, 0.06, (240, 130, 150))


def turtle(b: Brush) -> None:
    for x in (-0.42, 0.42):
        b.ellipse(x, 0.55, 0.2, 0.24, TURTLE)
    b.ellipse(0.8, 0.1, 0.25, 0.22, TURTLE)
    b.polygon([(-0.6, 0.3), (-1, 0.5), (-0.6, 0.5)], TURTLE)
    b.ellipse(0.87, 0.04, 0.06, 0.06, BLACK)
    b.dome(0, 0.45, 0.74, 0.98)
    for x, y in ((-0.36, 0.12), (0, -0.2), (0.36, 0.12)):
        b.ellipse(x, y, 0.15, 0.15, b.dark)


def hammer(b: Brush) -> None:
    b.box(0, 0.2, 0.11, 0.8, WOOD)
    b.box(0.1, -0.65, 0.5, 0.27)
    b.box(0.66, -0.65, 0.14, 0.34, b.dark)
    b.polygon([(-0.35, -0.92), (-0.35, -0.38), (-0.9, -0.5)])


def train(b: Brush) -> None:
    b.box(0.55, -0.45, 0.13, 0.35, b.dark)
    b.box(0.2, 0.08, 0.7, 0.32)
    b.box(-0.52, -0.2, 0.38, 0.6)
    b.box(-0.52, -0.78, 0.46, 0.09, b.dark)
    b.box(-0.52, -0.38, 0.2, 0.2, GLASS)
    b.polygon([(0.7, 0.4), (1, 0.7), (0.7, 0.7)], b.dark)
    for x in (-0.58, 0, 0.55):
        b.ellipse(x, 0.56, 0.25, 0.25, BLACK)
        b.ellipse(x, 0.56, 0.1, 0.1, (170, 170, 175))


def bottle(b: Brush) -> None:
    b.box(0, 0.42, 0.4, 0.56)
    b.polygon([(-0.4, -0.12), (0.4, -0.12), (0.15, -0.45), (-0.15, -0.45)])
    b.box(0, -0.6, 0.15, 0.24)
    b.box(0, -0.88, 0.19, 0.1, b.dark)
    b.box(0, 0.4, 0.4, 0.24, WHITE if sum(b.fill) < 660 else GLASS)


THINGS: dict[str, Callable[[Brush], None]] = {
    "square": square,
    "circle": circle,
    "triangle": triangle,
    "star": star,
    "heart": heart,
    "moon": moon,
    "flower": flower,
    "tree": tree,
    "house": house,
    "car": car,
    "boat": boat,
    "fish": fish,
    "mug": mug,
    "apple": apple,
    "mushroom": mushroom,
    "balloon": balloon,
    "umbrella": umbrella,
    "cat": cat,
    "bird": bird,
    "rocket": rocket,
    "butterfly": butterfly,
    "key": key,
    "guitar": guitar,
    "ladder": ladder,
    "cactus": cactus,
    "snail": snail,
    "clock": clock,
    "crown": crown,
    "chair": chair,
    "plane": plane,
    "rabbit": rabbit,
    "turtle": turtle,
    "hammer": hammer,
    "train": train,
    "bottle": bottle,
}
