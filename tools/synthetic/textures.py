"""Uncaptioned pictures for the VAE alone: patterns, gradients, noise, clutter and unnamed subjects."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from tools.synthetic import captions
from tools.synthetic.canvas import CANVAS, PALETTE, WHITE, Brush, Color
from tools.synthetic.creatures import BODIES, FEET, HEADS, PATTERNS, Creature, draw_at_random
from tools.synthetic.faces import EXPRESSIONS
from tools.synthetic.looks import Look
from tools.synthetic.portraits import Portrait
from tools.synthetic.scenes import Background
from tools.synthetic.things import THINGS


def _color(rng: random.Random) -> Color:
    return rng.randint(0, 255), rng.randint(0, 255), rng.randint(0, 255)


def waves(rng: random.Random) -> Image.Image:
    """Draw stripes, checks, rings or dots of two colours, at any angle and pitch."""
    y, x = np.mgrid[0:CANVAS, 0:CANVAS].astype(np.float32)
    angle, pitch = rng.uniform(0, np.pi), rng.uniform(10, 70)
    u = (x * np.cos(angle) + y * np.sin(angle)) / pitch
    v = (y * np.cos(angle) - x * np.sin(angle)) / pitch
    kind = rng.randrange(4)
    if kind == 0:
        field = np.sin(2 * np.pi * u)
    elif kind == 1:
        field = np.sin(2 * np.pi * u) * np.sin(2 * np.pi * v)
    elif kind == 2:
        field = np.sin(2 * np.pi * np.hypot(x - rng.uniform(0, CANVAS), y - rng.uniform(0, CANVAS)) / pitch)
    else:
        field = 0.3 - np.hypot(u % 1 - 0.5, v % 1 - 0.5)
    share = (field > 0).astype(np.float32) if rng.random() < 0.7 else (np.clip(field, -1, 1) + 1) / 2
    return _blend(share, _color(rng), _color(rng))


def gradient(rng: random.Random) -> Image.Image:
    """Draw a smooth field between three colours, as of light or fog."""
    y, x = np.mgrid[0:CANVAS, 0:CANVAS].astype(np.float32) / CANVAS
    angle = rng.uniform(0, 2 * np.pi)
    share = np.clip((x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle) + 0.5, 0, 1)
    base = np.asarray(_blend(share, _color(rng), _color(rng)), dtype=np.float32)
    bump = np.exp(-((x - rng.random()) ** 2 + (y - rng.random()) ** 2) * rng.uniform(3, 40))[..., None]
    return Image.fromarray((base * (1 - bump) + np.array(_color(rng)) * bump).astype(np.uint8))


def clouds(rng: random.Random) -> Image.Image:
    """Draw noise at several scales, as of fur, leaves or stone."""
    noise = np.random.default_rng(rng.getrandbits(32))
    share = np.zeros((CANVAS, CANVAS), np.float32)
    for side, weight in ((4, 1.0), (8, 0.7), (16, 0.5), (32, 0.4), (64, rng.choice((0.0, 0.4)))):
        tile = Image.fromarray(noise.random((side, side), np.float32)).resize(
            (CANVAS, CANVAS), Image.Resampling.BICUBIC
        )
        share += weight * np.asarray(tile)
    share = (share - share.min()) / (share.max() - share.min())
    return _blend(share, _color(rng), _color(rng))


def clutter(rng: random.Random) -> Image.Image:
    """Draw many things, lines and outlines over one another, in any colours."""
    picture = rng.choice((waves, gradient, clouds))(rng)
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.randint(3, 12)):
        brush = Brush(
            draw, rng.uniform(0, CANVAS), rng.uniform(0, CANVAS), rng.uniform(12, 90), _color(rng), rng.random() < 0.5
        )
        kind = rng.randrange(4)
        if kind == 0:
            rng.choice(list(THINGS.values()))(brush)
        elif kind == 1:
            brush.line([(rng.uniform(-1, 1), rng.uniform(-1, 1)) for _ in range(4)], rng.uniform(0.04, 0.3))
        elif kind == 2:
            brush.arc((0, 0, 0.9, rng.uniform(0.3, 0.9)), 0, 360, rng.uniform(0.05, 0.25))
        else:
            brush.polygon([(rng.uniform(-1, 1), rng.uniform(-1, 1)) for _ in range(rng.randint(3, 6))])
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(1, 4))) if rng.random() < 0.15 else picture


def random_creature(rng: random.Random) -> Image.Image:
    """Draw a creature in any three colours before any background."""
    creature = Creature(
        body=rng.choice(BODIES),
        pattern=rng.choice(PATTERNS),
        head=rng.choice(HEADS),
        feet=rng.choice(FEET),
        eyes=rng.choice((1, 2, 3)),
        mouth=rng.random() < 0.5,
        color=_color(rng),
        second=_color(rng),
        trim=_color(rng),
    )
    picture = Background.sample(rng).draw(rng) if rng.random() < 0.7 else clutter(rng)
    draw_at_random(creature, picture, rng, rng.uniform(0.18, 0.42))
    return picture


def recolored(rng: random.Random) -> Image.Image:
    """Draw a thing of the synthetic dataset, mostly in a colour without a name, before a texture."""
    picture = rng.choice((waves, gradient, clouds, gradient))(rng)
    radius = CANVAS * rng.uniform(0.15, 0.45)
    name = rng.choice(sorted(PALETTE))
    fill = PALETTE[name] if rng.random() < 0.3 else _color(rng)
    brush = Brush(ImageDraw.Draw(picture), CANVAS * rng.uniform(0.3, 0.7), CANVAS * rng.uniform(0.3, 0.7), radius, fill)
    rng.choice(list(THINGS.values()))(brush)
    return picture


def random_face(rng: random.Random) -> Image.Image:
    """Draw a face of unusual features in any colours before any background."""
    earring = _color(rng) if rng.random() < 0.6 else None
    someone = replace(Portrait.sample(rng), hair=_color(rng), iris=_color(rng), earring=earring)
    picture = Background.sample(rng).draw(rng) if rng.random() < 0.7 else clutter(rng)
    x, y = (CANVAS * rng.uniform(0.35, 0.65) for _ in range(2))
    brush = Brush(ImageDraw.Draw(picture), x, y, CANVAS * rng.uniform(0.25, 0.42), WHITE, rng.random() < 0.5)
    someone.draw(brush, rng.choice(sorted(EXPRESSIONS)))
    return picture


def restyled(rng: random.Random) -> Image.Image:
    """Draw a captioned or an uncaptioned picture in a look that has no name."""
    picture = (
        captions.sample(rng).picture if rng.random() < 0.7 else rng.choice((clutter, random_creature, random_face))(rng)
    )
    return Look.sample(rng).apply(picture, rng)


def sample(rng: random.Random) -> Image.Image:
    """Draw one picture of the variety."""
    subjects = (random_creature, random_creature, recolored, random_face, random_face)
    kinds = (waves, gradient, clouds, clutter, clutter, *subjects, *[restyled] * 3)
    return rng.choice(kinds)(rng)


def _blend(share: np.ndarray, a: Color, b: Color) -> Image.Image:
    first, second = np.array(a, np.float32), np.array(b, np.float32)
    return Image.fromarray((first + (second - first) * share[..., None]).astype(np.uint8))
