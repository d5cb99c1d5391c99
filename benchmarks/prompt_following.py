"""Measure how well the embedded base follows held-out prompts: combinations that it was not trained on.

    python -m benchmarks.prompt_following [--base FOLDER] [--count 300] [--sheet FILE]

The reader that judges the pictures is validated in the same run, on the synthetic dataset's renders of other
held-out prompts: as they are, reconstructed by the base's VAE, and against false answers.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from benchmarks.bases import load_named_base
from lora_service.demo.evaluation import reconstruct
from lora_service.generation.generator import ImageGenerator
from lora_service.generation.image_grid import ImageRow, draw_grid
from lora_service.generation.request import GenerateRequest
from tools.judges.judging import IMAGE_TEXT, TextJudge
from tools.judges.questions import answers
from tools.judges.reader import Reader
from tools.judges.validate import SEED, accuracy_by_question, render, score_reader
from tools.synthetic.captions import held_out_prompts
from tools.synthetic.description import Description

TARGETS = {"color": 0.90, "background": 0.90, "thing": 0.80, "place": 0.85}
PROMPTS_SEED = 1_000_000
ON_SHEET, COLUMNS = 64, 8


def draw_prompts(generator: ImageGenerator, prompts: Sequence[Description]) -> list[Image.Image]:
    """Draw each description's caption with the base's defaults; the seed is its index."""
    requests = [GenerateRequest(prompt=d.caption(), seed=i) for i, d in enumerate(prompts)]
    return [generator.generate(request, [])[0].image for request in requests]


def table(predictions: Sequence[dict[str, str]], prompts: Sequence[Description], reader: Reader,
          reconstructions: Sequence[Image.Image]) -> list[str]:  # fmt: skip
    """Return the accuracy by question; ``reconstructions`` are the validation's renders after the base's VAE."""
    accuracy = accuracy_by_question(predictions, prompts)
    plain, after_vae = (score_reader(reader, len(reconstructions), pictures) for pictures in ((), reconstructions))
    lines = [f"{'':12}{'drawn':>9}{'target':>9}   the reader on{'renders':>9}{'VAE':>9}{'mismatch':>10}"]
    for name, target in TARGETS.items():
        scores = f"{plain.accuracy[name]:25.1%}{after_vae.accuracy[name]:9.1%}{plain.false_positives[name]:10.1%}"
        lines.append(f"{name:12}{accuracy[name]:9.1%}{target:9.0%}{scores}")
    return lines


def annotated_caption(description: Description, prediction: dict[str, str]) -> str:
    """Return the caption, followed by the attributes that are wrong in the picture, if there are any."""
    wrong = [name for name, answer in answers(description).items() if prediction[name] != answer]
    return description.caption() + (f" [{', '.join(wrong)} wrong]" if wrong else "")


def captioned_sheet(pictures: Sequence[Image.Image], captions: Sequence[str], notes: Sequence[str]) -> Image.Image:
    """Return a sheet of rows of eight pictures with their captions."""
    starts = range(0, len(pictures), COLUMNS)
    return draw_grid([ImageRow("", pictures[i : i + COLUMNS], captions[i : i + COLUMNS]) for i in starts], notes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="embedded", help="a base model trained on the synthetic dataset")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--sheet", type=Path, help="file for a sheet of the first 64 pictures")
    parser.add_argument("--judge", default=IMAGE_TEXT, help="folder or hub id of a CLIP model")
    arguments = parser.parse_args()
    started = time.monotonic()
    base = load_named_base(arguments.base)
    prompts, validation_prompts = (held_out_prompts(arguments.count, seed) for seed in (PROMPTS_SEED, SEED))
    pictures, renders = draw_prompts(ImageGenerator(base), prompts), render(validation_prompts)
    reader, judge = Reader.load(), TextJudge.load(arguments.judge)
    predictions = reader.read(pictures)
    lines = table(predictions, prompts, reader, reconstruct(base, renders))
    pairs = {"drawn": (pictures, prompts), "renders": (renders, validation_prompts)}
    top_1 = {k: judge.top_1_accuracy(p[:ON_SHEET], [d.caption() for d in a[:ON_SHEET]]) for k, (p, a) in pairs.items()}
    lines.append(f"top-1 accuracy among {ON_SHEET} prompts by the image-text model: " +
                 ", ".join(f"{name} {share:.1%}" for name, share in top_1.items()))  # fmt: skip
    print(
        f"{base.defaults.title}, {len(prompts)} held-out prompts, {time.monotonic() - started:.0f} s", *lines, sep="\n"
    )
    if arguments.sheet:
        captions = [annotated_caption(d, p) for d, p in zip(prompts, predictions, strict=True)]
        captioned_sheet(pictures[:ON_SHEET], captions[:ON_SHEET], ()).save(arguments.sheet)


if __name__ == "__main__":
    main()
