"""Measure what each ``preservation`` keeps of the embedded base, and what it costs of the likeness.

    python -m benchmarks.preservation [--kinds object,face,style] [--seeds 1,2] [--steps 250] [--out FOLDER]

One held-out subject of each kind is taught with each seed and each choice, all else alike. By the image judge: the
likeness, the mean cosine with held-out pictures of the subject at scale 1.0. By pixels, the mean change from 0 to 1 at
scale 1.0: the drift of prompts that have nothing to do with the subject, and that of prompts of its class. Each
training is a line of ``rows.jsonl`` as soon as it is measured; the lines that are there are not measured again.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice, product
from pathlib import Path
from statistics import mean
from typing import Any

from PIL import Image

from benchmarks.bases import load_named_base
from benchmarks.likeness import PROMPTS_BY_KIND, REFERENCE_PICTURES, TRAINING_PICTURES
from lora_service.demo.evaluation import UNRELATED_PROMPTS, drift
from lora_service.generation.generator import ImageGenerator
from lora_service.generation.image_grid import ImageRow, draw_grid
from lora_service.generation.request import GenerateRequest
from lora_service.lora.files import read_lora
from lora_service.lora.scale import Scale
from lora_service.lora.weights import LoraWeights
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.image_judge import ImageJudge
from lora_service.settings import Settings
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.trainer import Trainer
from tools.synthetic.subjects import pictures, write_zip

SUBJECTS = {"object": 1_000_000, "face": 1_000_000, "style": 1_000_001}
CLASS_WORDS = {"object": "monster", "face": "person", "style": "picture"}
SHOWN = 3
DRAW_SEED, DRAW_STEPS = 11, 8
CHOICES: dict[str, dict[str, Any]] = {
    "none": {},
    "prior": {"preservation": "prior"},
    "output": {"preservation": "output"},
    "output, weight 4": {"preservation": "output", "preservation_weight": 4},
}


@dataclass(frozen=True)
class Row:
    """One training and its measures."""

    kind: str
    choice: str
    seed: int
    steps: int
    likeness: float
    drift: float
    class_drift: float
    seconds: float


@dataclass(frozen=True, eq=False)
class Bench:
    """What all trainings share."""

    base: DiffusionBase
    judge: ImageJudge
    folder: Path
    token_steps: int
    steps: int
    class_images: int
    _of_base: dict[tuple[str, ...], list[Image.Image]] = field(default_factory=dict, init=False)

    def train(self, kind: str, choice: str, seed: int) -> tuple[Path, float]:
        """Return the LoRA, and the seconds of both stages."""
        subject, job = SUBJECTS[kind], self.folder / "job"
        shutil.rmtree(job, ignore_errors=True)
        dataset = self.folder / f"{kind}.zip"
        write_zip(dataset, subject, TRAINING_PICTURES, 256, kind)
        inputs = {"task": kind, "class_word": CLASS_WORDS[kind], "seed": seed, **CHOICES[choice]}
        if inputs.get("preservation") == "prior":
            inputs["num_class_images"] = self.class_images
        inputs |= {"max_train_steps_ti": self.token_steps, "max_train_steps_tuning": self.steps}
        trainer = Trainer(self.base, job, log=print, settings=Settings.from_environment())
        result = trainer.run(dataset, TrainConfig.of(inputs))
        path = self.folder / f"{kind}-{choice.replace(', ', '-').replace(' ', '')}-{seed}.safetensors"
        return result.path.replace(path), result.seconds["stage 1"] + result.seconds["stage 2"]

    def draw(self, lora: LoraWeights | None, prompts: Sequence[str]) -> list[Image.Image]:
        """Draw ``prompts``, without a LoRA where there is none."""
        generator, loras = ImageGenerator(self.base), [(lora, Scale(1.0, 1.0))] if lora else []
        requests = [
            GenerateRequest(prompt=prompt, seed=DRAW_SEED, num_inference_steps=DRAW_STEPS) for prompt in prompts
        ]
        try:
            return [generator.generate(request, loras)[0].image for request in requests]
        finally:
            generator.patcher.restore()

    def draw_base(self, prompts: Sequence[str]) -> list[Image.Image]:
        """Draw ``prompts`` without a LoRA, once."""
        if tuple(prompts) not in self._of_base:
            self._of_base[tuple(prompts)] = self.draw(None, prompts)
        return self._of_base[tuple(prompts)]

    def measure(self, kind: str, choice: str, seed: int) -> Row:
        """Train and measure."""
        path, seconds = self.train(kind, choice, seed)
        lora, setup, side = read_lora(path), PROMPTS_BY_KIND[kind], self.base.defaults.resolution
        references = [p.image for p in islice(pictures(SUBJECTS[kind], side, "judge", kind), REFERENCE_PICTURES)]
        subject = [prompt.format(setup.lora_subject.format("<1>")) for prompt in setup.prompts]
        likeness = self.judge.similarity(self.draw(lora, subject), references)
        return Row(
            kind,
            choice,
            seed,
            self.steps,
            round(likeness, 4),
            self.drift(lora, UNRELATED_PROMPTS),
            self.drift(lora, class_prompts(kind)),
            round(seconds, 1),
        )

    def drift(self, lora: LoraWeights, prompts: Sequence[str]) -> float:
        """Return the mean change of a pixel that the LoRA makes of ``prompts``."""
        pairs = zip(self.draw_base(prompts), self.draw(lora, prompts), strict=True)
        return round(mean(drift(before, after) for before, after in pairs), 4)

    def sheet(self, kind: str, choices: Sequence[str], seed: int) -> list[ImageRow]:
        """Return rows of pictures: of the base, and of each choice, of the subject, its class and other prompts."""
        setup = PROMPTS_BY_KIND[kind]
        others = [*class_prompts(kind)[3 : 3 + SHOWN], *UNRELATED_PROMPTS[:SHOWN]]
        subject = [prompt.format(setup.lora_subject.format("<1>")) for prompt in setup.prompts[3 : 3 + SHOWN]]
        plain = self.draw_base(others)
        blank = [Image.new("RGB", plain[0].size, "white")] * SHOWN
        rows = [ImageRow(f"{kind}: the base", [*blank, *plain])]
        for choice in choices:
            path = self.folder / f"{kind}-{choice.replace(', ', '-').replace(' ', '')}-{seed}.safetensors"
            rows.append(ImageRow(choice, self.draw(read_lora(path), [*subject, *others])))
        captions = [prompt.replace("<1>", "…") for prompt in (*subject, *others)]
        return [*rows[:-1], ImageRow(rows[-1].label, rows[-1].images, captions)]


def class_prompts(kind: str) -> list[str]:
    """Return the evaluation's prompts with the class in place of the subject."""
    setup = PROMPTS_BY_KIND[kind]
    return [prompt.format(setup.base_subject) for prompt in setup.prompts]


def read_rows(path: Path) -> list[Row]:
    """Return the trainings that were measured already."""
    return [Row(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def table(rows: Sequence[Row], choices: Sequence[str]) -> Iterator[str]:
    """Yield the means over seeds, by kind and over all kinds."""
    yield f"{'':8}{'choice':18}{'likeness':>10}{'drift':>10}{'class drift':>13}{'seconds':>9}{'trainings':>11}"
    kinds = list(dict.fromkeys(row.kind for row in rows))
    for kind, choice in product([*kinds, "all"], choices):
        found = [row for row in rows if row.choice == choice and kind in (row.kind, "all")]
        if found:
            likeness, other, of_class, seconds = (
                mean(getattr(row, name) for row in found) for name in ("likeness", "drift", "class_drift", "seconds")
            )
            yield f"{kind:8}{choice:18}{likeness:10.3f}{other:10.3f}{of_class:13.3f}{seconds:9.0f}{len(found):11}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="embedded", help="a base model trained on the synthetic dataset")
    parser.add_argument("--kinds", default="object,face,style")
    parser.add_argument("--choices", default="none;prior;output", help=f"some of {'; '.join(CHOICES)}")
    parser.add_argument("--seeds", default="1,2")
    parser.add_argument("--steps", type=int, default=250, help="of stage 2, which all of this is about")
    parser.add_argument("--token-steps", type=int, default=250, help="of stage 1, which is the same for each choice")
    parser.add_argument("--class-images", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("build/preservation"))
    parser.add_argument("--sheet", action="store_true", help="draw the sheet of what is there, and train nothing")
    arguments = parser.parse_args()
    kinds, choices = arguments.kinds.split(","), arguments.choices.split(";")
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "rows.jsonl"
    base = load_named_base(arguments.base, for_training=True)
    bench = Bench(
        base, ImageJudge.load(), arguments.out, arguments.token_steps, arguments.steps, arguments.class_images
    )
    if arguments.sheet:
        rows = [row for kind in kinds for row in bench.sheet(kind, choices, seeds[0])]
        draw_grid(rows, list(table(read_rows(path), choices))).save(arguments.out / "preservation.png")
        return
    done = {(row.kind, row.choice, row.seed, row.steps) for row in read_rows(path)}
    for seed, kind, choice in product(seeds, kinds, choices):
        if (kind, choice, seed, arguments.steps) not in done:
            row = bench.measure(kind, choice, seed)
            with path.open("a") as file:
                file.write(json.dumps(asdict(row)) + "\n")
            print(row, flush=True)
    print(*table(read_rows(path), choices), sep="\n")


if __name__ == "__main__":
    main()
