"""What a training with the defaults teaches the embedded base: a face, an object or a style it has never seen.

    python -m benchmarks.likeness --kind object|face|style [--base FOLDER] [--seed 1000000] [--out FOLDER]

Similarity is the mean cosine of the image judge with further pictures of the subject,
between the floor, which is the base's own picture of the same prompt, and the
ceiling, which is yet other pictures of the subject after the base's VAE.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from PIL import Image

from benchmarks.bases import base_for_judging, through_vae
from lora_service.demo.evaluation import Evaluation, Metrics, evaluate
from lora_service.demo.image_grid import ImageRow, draw_grid
from lora_service.demo.show import PROMPTS
from lora_service.lora.files import read_lora
from lora_service.lora.weights import LoraWeights
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.training.config import TrainConfig
from lora_service.training.trainer import Trainer
from tools.judges.folders import IMAGE
from tools.judges.judging import ImageJudge
from tools.synthetic.creatures import HELD_OUT_SUBJECTS
from tools.synthetic.subjects import pictures, write_zip

TAUGHT_WITH, SHOWN, JUDGED_BY = 10, 6, 24
STYLE_PROMPTS = (
    "a red star on a blue background{}",
    "a yellow car in a meadow{}",
    "a green fish on a pink background{}",
    "a brown house in the snow{}",
    "a purple mug on a striped white background{}",
    "a person with short black hair and a smile on the beach{}",
)


@dataclass(frozen=True)
class Lesson:
    """What is taught and asked: ``plain`` stands for the subject where the base draws, ``taught`` where a LoRA does."""

    class_word: str
    prompts: Sequence[str]
    plain: str
    taught: str = "{}"


LESSONS = {
    "object": Lesson("monster", PROMPTS, "a monster"),
    "face": Lesson("person", PROMPTS, "a person"),
    "style": Lesson("", STYLE_PROMPTS, "", " in the style of {}"),
}


def teach(base: DiffusionBase, kind: str, seed: int, folder: Path) -> Path:
    """The LoRA of subject ``seed``, trained with the task's defaults on its pictures."""
    zipped = folder / f"{kind}-{seed}.zip"
    write_zip(zipped, seed, TAUGHT_WITH, 256, kind)
    config = TrainConfig.of({"task": kind, "class_word": LESSONS[kind].class_word, "seed": 1})
    job = Trainer(base, folder, on_progress=lambda progress: print(progress.line(), flush=True), log=print)
    return job.run(zipped, config).path.replace(folder / f"{kind}-{seed}.safetensors")


def likeness(
    base: DiffusionBase, lora: LoraWeights, judge: ImageJudge, kind: str, seed: int
) -> tuple[list[ImageRow], Metrics]:
    """Rows of pictures for a sheet, and figures with the VAE's ceiling among the similarities."""
    lesson, side = LESSONS[kind], base.defaults.resolution
    further = [p.image for p in islice(pictures(seed, side, "judge", kind), 2 * JUDGED_BY)]
    subject, others = further[:JUDGED_BY], further[JUDGED_BY:]
    evaluation = Evaluation(
        lesson.prompts, lesson.plain, lambda images: judge.similarity(images, subject), lesson.taught
    )
    rows, figures = evaluate(base, lora, evaluation)
    ceiling = through_vae(base, others)
    figures.similarity["ceiling"] = judge.similarity(ceiling, subject)
    taught: list[Image.Image] = [p.image for p in islice(pictures(seed, side, kind=kind), SHOWN)]
    return [
        ImageRow("taught with", taught),
        *rows,
        ImageRow("further pictures after the VAE", ceiling[:SHOWN]),
    ], figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=sorted(LESSONS), required=True)
    parser.add_argument("--base", default="embedded", help="a base model trained on the synthetic dataset")
    parser.add_argument("--seed", type=int, default=HELD_OUT_SUBJECTS, help="which subject")
    parser.add_argument("--judge", default=IMAGE, help="folder or hub id of an image encoder: a CLIP, or a DINO")
    parser.add_argument("--lora", type=Path, help="a LoRA that was taught it before; nothing is trained")
    parser.add_argument("--out", type=Path, default=Path("build/likeness"), help="folder for the sheet and the LoRA")
    arguments = parser.parse_args()
    judge, base = ImageJudge.load(arguments.judge), base_for_judging(arguments.base, for_training=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    lora = arguments.lora or teach(base, arguments.kind, arguments.seed, arguments.out)
    rows, figures = likeness(base, read_lora(lora), judge, arguments.kind, arguments.seed)
    lines = figures.lines("mean cosine by the image judge")
    print(f"{base.defaults.title}, {arguments.kind} {arguments.seed}", *lines, sep="\n")
    draw_grid(rows, lines).save(arguments.out / f"{arguments.kind}.png")


if __name__ == "__main__":
    main()
