"""Compare settings of a training on the embedded base: likeness, held-out loss, drift, seconds per step, file size.

    python -m benchmarks.recipe --variant "" --variant lora_targets=attention --variant optimizer=prodigy,lora_rank=4
        [--kind face object style] [--seeds 1 2] [--steps 60 150] [--out FOLDER]

A variant is a list of inputs with their values, "" for the defaults. Every variant teaches the same held-out subject of
each kind with the same seeds; runs take turns, so that a machine which others use treats all alike, and each is
appended to ``recipe.jsonl`` as it is done: a call that is repeated leaves out what is there. Seconds are those of the
processor, on one thread. The held-out loss is the mean square error of the prediction on pictures of the subject that
were not trained on, with fixed noise at fixed timesteps; the similarity by tokens and by trigger the image judge's mean
cosine with such pictures, as in :mod:`benchmarks.likeness`; the drift that of four prompts without the subject.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.bases import load_named_base
from benchmarks.likeness import PROMPTS_BY_KIND, REFERENCE_PICTURES, TRAINING_PICTURES
from lora_service.dataset.options import SUBJECT
from lora_service.dataset.training_images import TrainingImage
from lora_service.demo.evaluation import UNRELATED_PROMPTS, drift
from lora_service.generation.generator import ImageGenerator
from lora_service.generation.request import GenerateRequest
from lora_service.lora.files import read_lora
from lora_service.lora.scale import Scale
from lora_service.lora.weights import LoraWeights
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.image_judge import ImageJudge
from lora_service.training.data.latent_cache import cache_latents
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.inputs.resolved_config import ResolvedConfig
from lora_service.training.losses.denoising_loss import DenoisingLoss
from lora_service.training.optimization.loop import StageRun, TrainingCallback
from lora_service.training.trainer import Trainer
from tools.synthetic.creatures import HELD_OUT_SUBJECTS
from tools.synthetic.subjects import pictures, write_zip

DRAWING_SEED = 11
TIMESTEPS = (50, 200, 400, 600, 800)
HELD_OUT_PICTURES = 8
_DECIMALS = {"held_out_loss": 5, "tokens": 3, "trigger": 3, "drift": 4, "seconds": 3, "kilobytes": 0}


@dataclass(frozen=True)
class Run:
    """One training: a variant, a kind of subject, the subject's number and the training's seed."""

    variant: str
    kind: str
    subject: int
    seed: int

    def inputs(self, steps: Sequence[int]) -> dict[str, Any]:
        """Return the training's inputs."""
        pairs = [pair.partition("=") for pair in self.variant.split(",") if pair]
        return {
            "task": self.kind,
            "class_word": PROMPTS_BY_KIND[self.kind].class_word,
            "trigger": "zumvek",
            "seed": self.seed,
            "samples": 0,
            "max_train_steps_ti": steps[0],
            "max_train_steps_tuning": steps[1],
        } | {name.strip(): value.strip() for name, _, value in pairs}


class _Clock(TrainingCallback):
    """Measures the processor's seconds of a stage."""

    def __init__(self) -> None:
        self.seconds_per_step = 0.0

    def on_stage_start(self, stage: StageRun) -> None:
        self._started = time.process_time()

    def on_stage_end(self, stage: StageRun) -> None:
        self.seconds_per_step = (time.process_time() - self._started) / stage.step


class _TimedTrainer(Trainer):
    def _watching(self, *args: Any) -> list[TrainingCallback]:
        self.clock = _Clock()
        return [*super()._watching(*args), self.clock]


class Bench:
    """Trains and measures on one base."""

    def __init__(self, base: DiffusionBase, folder: Path, steps: Sequence[int]) -> None:
        self._base, self._folder, self._steps = base, folder, steps
        self._judge = ImageJudge.load()
        self._generator = ImageGenerator(base)

    def measure(self, run: Run) -> dict[str, float]:
        """Train, draw and compare; ``tokens`` is missing where there are none."""
        dataset = self._folder / f"{run.kind}-{run.subject}.zip"
        if not dataset.exists():
            write_zip(dataset, run.subject, TRAINING_PICTURES, 256, run.kind)
        trainer = _TimedTrainer(self._base, self._folder)
        result = trainer.run(dataset, TrainConfig.of(run.inputs(self._steps)))
        weights, setup, side = read_lora(result.path), PROMPTS_BY_KIND[run.kind], self._base.defaults.resolution
        held_out = [p.image for p in islice(pictures(run.subject, side, "judge", run.kind), REFERENCE_PICTURES)]

        def similarity(word: str) -> float:
            prompts = [prompt.format(setup.lora_subject.format(word)) for prompt in setup.prompts]
            return self._judge.similarity([self._draw(prompt, weights, 1.0) for prompt in prompts], held_out)

        pairs = [[self._draw(prompt, weights, scale) for scale in (0.0, 1.0)] for prompt in UNRELATED_PROMPTS]
        words = {"trigger": weights.trigger or ""} | ({"tokens": "<1>"} if weights.tokens else {})
        return {
            "held_out_loss": self._held_out_loss(weights, held_out[:HELD_OUT_PICTURES], result.resolved),
            **{name: similarity(word) for name, word in words.items()},
            "drift": statistics.mean(drift(*pair) for pair in pairs),
            "seconds": trainer.clock.seconds_per_step,
            "kilobytes": result.path.stat().st_size / 1000,
        }

    def _draw(self, prompt: str, weights: LoraWeights, scale: float) -> Image.Image:
        request = GenerateRequest(prompt=prompt, seed=DRAWING_SEED)
        return self._generator.generate(request, [(weights, Scale(scale, scale))])[0].image

    @torch.no_grad()
    def _held_out_loss(self, weights: LoraWeights, images: Sequence[Image.Image], resolved: ResolvedConfig) -> float:
        base, denoising, losses = self._base, DenoisingLoss(self._base, resolved), []
        examples = [
            TrainingImage(str(i), im, (SUBJECT,), None, (0, 0, *im.size), im.size) for i, im in enumerate(images)
        ]
        latents = cache_latents(examples, base, flip=False, color_jitter=False, seed=0)[0].mean[0]
        self._generator.patcher.apply([(weights, Scale(1.0, 1.0))])
        try:
            text = base.text.encode(base.text.tokenize([resolved.prompt_with(weights.trigger or "")] * len(images)))
            generator = torch.Generator().manual_seed(0)
            for timestep in TIMESTEPS:
                noise = torch.randn(latents.shape, generator=generator)
                batch = denoising.at(latents, noise, torch.full((len(images),), timestep))
                losses.append((denoising.predict(batch, text, None) - batch.target).square().mean().item())
        finally:
            self._generator.patcher.restore()
        return statistics.mean(losses)


def table(done: Mapping[Run, Mapping[str, float]]) -> list[str]:
    """Return a line per variant: means over subjects and seeds, and how many runs there are."""
    by_variant: dict[str, list[Mapping[str, float]]] = defaultdict(list)
    for run, measured in done.items():
        by_variant[run.variant].append(measured)
    lines = [f"| variant | runs | {' | '.join(_DECIMALS)} |", "|---" * (len(_DECIMALS) + 2) + "|"]
    for variant, rows in by_variant.items():
        means = [
            f"{statistics.mean(row[name] for row in rows):.{digits}f}" if name in rows[0] else "–"
            for name, digits in _DECIMALS.items()
        ]
        lines.append(f"| {variant or 'defaults'} | {len(rows)} | {' | '.join(means)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", action="append", help="inputs as NAME=VALUE, split by commas", required=True)
    parser.add_argument("--kind", nargs="+", choices=sorted(PROMPTS_BY_KIND), default=sorted(PROMPTS_BY_KIND))
    parser.add_argument("--subject", type=int, default=HELD_OUT_SUBJECTS, help="number of the subject")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, nargs=2, default=[60, 150], help="of stage 1 and stage 2")
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--out", type=Path, default=Path("build/recipe"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    results, done = arguments.out / "recipe.jsonl", dict[Run, dict[str, float]]()
    for line in results.read_text().splitlines() if results.exists() else ():
        entry = json.loads(line)
        done[Run(**entry["run"])] = entry["measured"]
    bench = Bench(load_named_base(arguments.base, for_training=True), arguments.out, arguments.steps)
    for seed in arguments.seeds:
        for kind in arguments.kind:
            for variant in arguments.variant:
                run = Run(variant, kind, arguments.subject, seed)
                if run in done:
                    continue
                done[run] = bench.measure(run)
                with results.open("a") as file:
                    file.write(json.dumps({"run": vars(run), "measured": done[run]}) + "\n")
                print(run, {name: round(value, 4) for name, value in done[run].items()}, flush=True)
    print(*table(done), sep="\n")


if __name__ == "__main__":
    main()
