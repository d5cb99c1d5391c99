"""Teaches the embedded model a subject it has never seen, and shows what it learned on one sheet."""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from statistics import mean

from PIL import Image

from lora_service.demo.measures import subject_similarity
from lora_service.demo.sheet import Row, draw_sheet
from lora_service.demo.trial import Trial, draw_and_measure
from lora_service.lora.files import read_lora
from lora_service.models.loading import load_base, use_threads
from lora_service.settings import Settings
from lora_service.training.config import TrainConfig
from lora_service.training.trainer import Trainer

SUBJECT = Path(__file__).parent / "subject.zip"
"""Pictures of a drawn creature, with masks and captions: tools/world/subjects.py, seed 12."""
CLASS_WORD = "monster"
"""What the base draws for "the same prompt": the nearest word it knows."""
TRAINING = {
    "task": "object",
    "class_word": CLASS_WORD,
    "seed": 1,
    "max_train_steps_ti": 300,
    "max_train_steps_tuning": 300,
}
PROMPTS = (
    "a picture of {} on a white background",
    "a picture of {} on a striped pink background",
    "a picture of {} on the beach",
    "a picture of {} in the forest",
    "a picture of {} at night",
    "a picture of {} in the snow",
)


def show(folder: Path, log: Callable[[str], None] = print) -> Path:
    """Run the demonstration; the sheet ``demo.png`` and the LoRA ``demo.safetensors`` are written to ``folder``."""
    started = time.monotonic()
    settings = Settings.from_environment().model_copy(update={"base_model": "embedded"})
    use_threads(settings)
    base = load_base(settings, for_training=True)
    folder.mkdir(parents=True, exist_ok=True)
    job = Trainer(base, folder, on_progress=lambda progress: log(progress.line()), log=log)
    result = job.run(SUBJECT, TrainConfig.of(dict(TRAINING)))
    lora_path = result.path.replace(folder / "demo.safetensors")
    taught, masks = taught_pictures(SUBJECT)
    trial = Trial(
        PROMPTS,
        plain=f"a {CLASS_WORD}",
        likeness=lambda pictures: mean(subject_similarity(p, taught, masks) for p in pictures),
    )
    rows, figures = draw_and_measure(base, read_lora(lora_path), trial)
    lines = figures.lines("1: every patch of it is found")
    draw_sheet([Row("taught with", taught[: len(PROMPTS)]), *rows], lines).save(folder / "demo.png")
    for line in lines:
        log(line)
    log(f"{folder / 'demo.png'} shows it and {lora_path} is the LoRA, after {time.monotonic() - started:.0f} s")
    return folder / "demo.png"


def taught_pictures(path: Path) -> tuple[list[Image.Image], list[Image.Image]]:
    """The subject's pictures and their masks."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".png") and ".mask" not in n)
        pictures = [Image.open(io.BytesIO(archive.read(n))).convert("RGB") for n in names]
        masks = [Image.open(io.BytesIO(archive.read(n.replace(".png", ".mask.png")))).convert("L") for n in names]
    return pictures, masks
