"""How well the embedded base follows prompts whose combination of thing, colour and background it never saw.

    python -m benchmarks.prompt_following [--base FOLDER] [--count 300] [--sheet FILE]

The reader that judges is validated in the same run, on the synthetic dataset's own renders of
other such prompts: as they are, after the base's VAE, and asked for what they do not show.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from benchmarks.bases import base_for_judging, through_vae
from lora_service.demo.image_grid import ImageRow, draw_grid
from lora_service.generation.generator import ImageGenerator
from lora_service.generation.request import GenerateRequest
from tools.judges.folders import IMAGE_TEXT
from tools.judges.judging import TextJudge
from tools.judges.questions import answers
from tools.judges.reader import Reader
from tools.judges.validate import SEED, renders, shares_right, trust_of_reader
from tools.synthetic.captions import held_out_prompts
from tools.synthetic.description import Description

TARGETS = {"color": 0.90, "background": 0.90, "thing": 0.80, "place": 0.85}
PROMPTS_SEED = 1_000_000
ON_SHEET, COLUMNS = 64, 8


def draw_prompts(drawing: ImageGenerator, asked: Sequence[Description]) -> list[Image.Image]:
    """A picture of each description's caption, with the base's own defaults; the seed is its place in the list."""
    requests = [GenerateRequest(prompt=d.caption(), seed=i) for i, d in enumerate(asked)]
    return [drawing.generate(request, [])[0].image for request in requests]


def table(read: Sequence[dict[str, str]], asked: Sequence[Description], reader: Reader,
          decoded: Sequence[Image.Image]) -> list[str]:  # fmt: skip
    """Shares right by question; ``decoded`` are the validation's renders after the base's VAE."""
    drawn = shares_right(read, asked)
    plain, after_vae = (trust_of_reader(reader, len(decoded), pictures) for pictures in ((), decoded))
    lines = [f"{'':12}{'drawn':>9}{'wanted':>9}   the reader on{'renders':>9}{'VAE':>9}{'mismatch':>10}"]
    for name, wanted in TARGETS.items():
        trust = f"{plain.real[name]:25.1%}{after_vae.real[name]:9.1%}{plain.mismatched[name]:10.1%}"
        lines.append(f"{name:12}{drawn[name]:9.1%}{wanted:9.0%}{trust}")
    return lines


def marked(description: Description, read: dict[str, str]) -> str:
    """The caption, and what is wrong with the picture, if anything is."""
    wrong = [name for name, told in answers(description).items() if read[name] != told]
    return description.caption() + (f" [{', '.join(wrong)} wrong]" if wrong else "")


def captioned_sheet(pictures: Sequence[Image.Image], captions: Sequence[str], notes: Sequence[str]) -> Image.Image:
    """Rows of eight with their captions."""
    starts = range(0, len(pictures), COLUMNS)
    return draw_grid([ImageRow("", pictures[i : i + COLUMNS], captions[i : i + COLUMNS]) for i in starts], notes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="embedded", help="a base model trained on the synthetic dataset")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--sheet", type=Path, help="where a sheet of the first 64 is written")
    parser.add_argument("--judge", default=IMAGE_TEXT, help="folder or hub id of a CLIP model")
    arguments = parser.parse_args()
    started = time.monotonic()
    base = base_for_judging(arguments.base)
    asked, others = (held_out_prompts(arguments.count, seed) for seed in (PROMPTS_SEED, SEED))
    pictures, real = draw_prompts(ImageGenerator(base), asked), renders(others)
    reader, judge = Reader.load(), TextJudge.load(arguments.judge)
    read = reader.read(pictures)
    lines = table(read, asked, reader, through_vae(base, real))
    pairs = {"drawn": (pictures, asked), "renders": (real, others)}
    first = {k: judge.own_text_first(p[:ON_SHEET], [d.caption() for d in a[:ON_SHEET]]) for k, (p, a) in pairs.items()}
    lines.append(f"own prompt first of {ON_SHEET} by the image-text model: " +
                 ", ".join(f"{name} {share:.1%}" for name, share in first.items()))  # fmt: skip
    print(f"{base.defaults.title}, {len(asked)} held-out prompts, {time.monotonic() - started:.0f} s", *lines, sep="\n")
    if arguments.sheet:
        captions = [marked(d, r) for d, r in zip(asked, read, strict=True)]
        captioned_sheet(pictures[:ON_SHEET], captions[:ON_SHEET], ()).save(arguments.sheet)


if __name__ == "__main__":
    main()
