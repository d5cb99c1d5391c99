"""Evaluate a training with the defaults on the embedded base: a face, an object or a style that it has never seen.

    python -m benchmarks.likeness --kind object|face|style [--base FOLDER] [--seed 1000000] [--out FOLDER]

The similarity is the image judge's mean cosine with held-out pictures of the subject. Its floor is that of the
base without the LoRA for the same prompts, its ceiling that of yet other pictures of the subject, reconstructed by
the base's VAE.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from PIL import Image

from benchmarks.bases import load_named_base
from benchmarks.quality.subjects import PROMPTS_BY_KIND, REFERENCE_PICTURES, SHOWN_PICTURES, TRAINING_PICTURES
from lora_service.demo.evaluation import Evaluation, VariantMetrics, evaluate, reconstruct
from lora_service.generation.image_grid import ImageRow, draw_grid
from lora_service.lora.files import read_lora
from lora_service.lora.weights import LoraWeights
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.image_judge import EMBEDDED_JUDGE, ImageJudge
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.trainer import Trainer
from tools.synthetic.creatures import HELD_OUT_SUBJECTS
from tools.synthetic.subjects import pictures, write_zip


def train(base: DiffusionBase, kind: str, seed: int, folder: Path) -> Path:
    """Train a LoRA of subject ``seed`` with the task's defaults, and return its file."""
    dataset = folder / f"{kind}-{seed}.zip"
    write_zip(dataset, seed, TRAINING_PICTURES, 256, kind)
    config = TrainConfig.of({"task": kind, "class_word": PROMPTS_BY_KIND[kind].class_word, "seed": 1})
    job = Trainer(base, folder, on_progress=lambda progress: print(progress.line(), flush=True), log=print)
    return job.run(dataset, config).path.replace(folder / f"{kind}-{seed}.safetensors")


def likeness(
    base: DiffusionBase, lora: LoraWeights, judge: ImageJudge, kind: str, seed: int
) -> tuple[list[ImageRow], VariantMetrics]:
    """Evaluate a LoRA: rows of pictures for a sheet, and metrics with the ceiling among the similarities."""
    setup, side = PROMPTS_BY_KIND[kind], base.defaults.resolution
    held_out = [p.image for p in islice(pictures(seed, side, "judge", kind), 2 * REFERENCE_PICTURES)]
    references, others = held_out[:REFERENCE_PICTURES], held_out[REFERENCE_PICTURES:]

    def similarity(images: Sequence[Image.Image]) -> float:
        return judge.similarity(images, references)

    rows, metrics = evaluate(base, lora, Evaluation(setup.prompts, setup.base_subject, similarity, setup.lora_subject))
    ceiling = reconstruct(base, others)
    metrics.similarity["ceiling"] = similarity(ceiling)
    training: list[Image.Image] = [p.image for p in islice(pictures(seed, side, kind=kind), SHOWN_PICTURES)]
    return [
        ImageRow("training pictures", training),
        *rows,
        ImageRow("held-out pictures after the VAE", ceiling[:SHOWN_PICTURES]),
    ], metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=sorted(PROMPTS_BY_KIND), required=True)
    parser.add_argument("--base", default="embedded", help="a base model trained on the synthetic dataset")
    parser.add_argument("--seed", type=int, default=HELD_OUT_SUBJECTS, help="number of the subject")
    parser.add_argument("--judge", default=EMBEDDED_JUDGE, help="folder or hub id of a CLIP or a DINO")
    parser.add_argument("--lora", type=Path, help="a LoRA of the subject to evaluate; nothing is trained")
    parser.add_argument("--out", type=Path, default=Path("build/likeness"), help="folder for the sheet and the LoRA")
    arguments = parser.parse_args()
    judge, base = ImageJudge.load(arguments.judge), load_named_base(arguments.base, for_training=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    lora = arguments.lora or train(base, arguments.kind, arguments.seed, arguments.out)
    rows, metrics = likeness(base, read_lora(lora), judge, arguments.kind, arguments.seed)
    lines = metrics.lines("mean cosine by the image judge")
    print(f"{base.defaults.title}, {arguments.kind} {arguments.seed}", *lines, sep="\n")
    draw_grid(rows, lines).save(arguments.out / f"{arguments.kind}.png")


if __name__ == "__main__":
    main()
