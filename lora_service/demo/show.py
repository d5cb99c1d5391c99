"""Teaches the embedded model a subject it has never seen, and shows what it learned on one sheet."""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

from PIL import Image

from lora_service.demo.sheet import Row, draw_sheet
from lora_service.generation.drawing import Drawing
from lora_service.generation.request import GenerateRequest
from lora_service.lora.reader import read_lora
from lora_service.lora.scale import Scale
from lora_service.lora.weights import LoraWeights
from lora_service.measures import drift, subject_similarity
from lora_service.models.bundle import BaseModel
from lora_service.models.loading import load_base, use_threads
from lora_service.settings import Settings
from lora_service.training.config import TrainConfig
from lora_service.training.job import Job

SUBJECT = Path(__file__).parent / "subject.zip"
"""Pictures of a drawn creature, with masks and captions: tools/world/subjects.py, seed 12."""
CLASS_WORD = "monster"
"""What the base draws for "the same prompt": the nearest word it knows."""
TRAINING = {
    "task": "object",
    "class_word": CLASS_WORD,
    "seed": 1,
    "train_batch_size": 4,
    "max_train_steps_ti": 150,
    "max_train_steps_tuning": 350,
}
PROMPTS = (
    "a picture of {} on a white background",
    "a picture of {} on a striped pink background",
    "a picture of {} on the beach",
    "a picture of {} in the forest",
    "a picture of {} at night",
    "a picture of {} in the snow",
)
OTHERS = (
    "a red star on a blue background",
    "a yellow car in a meadow",
    "a green fish on a pink background",
    "a person with long black hair and glasses",
)
"""Prompts that a LoRA should leave alone."""
SEEDS = (11, 12, 13)


@dataclass
class Figures:
    """What was measured, means over prompts and seeds; see ``lora_service/measures.py``."""

    similarity: dict[str, float] = field(default_factory=dict)
    drift: dict[str, float] = field(default_factory=dict)

    def lines(self) -> list[str]:
        likeness = ", ".join(f"{name} {value:.2f}" for name, value in self.similarity.items())
        moved = ", ".join(f"{name} {value:.3f}" for name, value in self.drift.items())
        return [
            f"similarity to the subject (1: every patch of it is found): {likeness}",
            f"drift of other prompts (mean change of a pixel, 0 to 1): {moved}",
        ]


def show(folder: Path, tell: Callable[[str], None] = print) -> Path:
    """Run the demonstration; the sheet ``demo.png`` and the LoRA ``demo.safetensors`` are written to ``folder``."""
    started = time.monotonic()
    settings = Settings.from_environment().model_copy(update={"base_model": "embedded"})
    use_threads(settings)
    base = load_base(settings, for_training=True)
    folder.mkdir(parents=True, exist_ok=True)
    job = Job(base, folder, on_progress=lambda progress: tell(progress.line()), tell=tell)
    result = job.run(SUBJECT, TrainConfig.of(dict(TRAINING)))
    lora_path = result.path.replace(folder / "demo.safetensors")
    rows, figures = draw_and_measure(base, read_lora(lora_path), SUBJECT)
    sheet = draw_sheet(rows, figures.lines())
    sheet.save(folder / "demo.png")
    for line in figures.lines():
        tell(line)
    tell(f"{folder / 'demo.png'} shows it and {lora_path} is the LoRA, after {time.monotonic() - started:.0f} s")
    return folder / "demo.png"


def draw_and_measure(base: BaseModel, weights: LoraWeights, subject: Path) -> tuple[list[Row], Figures]:
    """Rows of pictures, drawn by the base and with the LoRA at two scales, and what they measure."""
    taught, masks = taught_pictures(subject)
    drawing, figures, rows = Drawing(base), Figures(), [Row("taught with", taught[: len(PROMPTS)])]
    trigger = weights.trigger or CLASS_WORD
    trials = {
        "base": (0.0, f"a {CLASS_WORD}"),
        "scale 0.5": (0.5, "<1>"),
        "scale 1.0": (1.0, "<1>"),
        "trigger word": (1.0, trigger),
    }
    for name, (scale, word) in trials.items():
        drawn = [_draw(drawing, weights, scale, [p.format(word) for p in PROMPTS], seed) for seed in SEEDS]
        figures.similarity[name] = mean(subject_similarity(p, taught, masks) for row in drawn for p in row)
        rows.append(Row(name, drawn[0]))
    before = _draw(drawing, weights, 0.0, list(OTHERS), SEEDS[0])
    for scale in (0.5, 1.0):
        after = _draw(drawing, weights, scale, list(OTHERS), SEEDS[0])
        figures.drift[f"scale {scale}"] = mean(drift(b, a) for b, a in zip(before, after, strict=True))
    rows.append(Row("other prompts, base and 1.0", [p for pair in zip(before, after, strict=True) for p in pair][:6]))
    return rows, figures


def _draw(drawing: Drawing, weights: LoraWeights, scale: float, prompts: list[str], seed: int) -> list[Image.Image]:
    return [
        drawing.draw(GenerateRequest(prompt=prompt, seed=seed), [(weights, Scale(scale, scale))])[0].image
        for prompt in prompts
    ]


def taught_pictures(path: Path) -> tuple[list[Image.Image], list[Image.Image]]:
    """The subject's pictures and their masks."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".png") and ".mask" not in n)
        pictures = [Image.open(io.BytesIO(archive.read(n))).convert("RGB") for n in names]
        masks = [Image.open(io.BytesIO(archive.read(n.replace(".png", ".mask.png")))).convert("L") for n in names]
    return pictures, masks
