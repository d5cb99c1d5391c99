"""Trains the embedded model on a subject it has never seen, and shows the result in one image."""

from __future__ import annotations

import io
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from lora_service.demo.evaluation import Evaluation, evaluate, reconstruct
from lora_service.generation.image_grid import ImageRow, draw_grid
from lora_service.lora.files import read_lora
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.image_judge import ImageJudge
from lora_service.models.loading import load_base, use_threads
from lora_service.settings import Settings
from lora_service.training.callbacks.training_progress import OnProgress
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.trainer import Trainer

SUBJECT = Path(__file__).parent / "subject.zip"
"""Pictures of a drawn creature, with masks and captions: tools/synthetic/subjects.py, seed 12."""
CLASS_WORD = "monster"
"""The subject in the base's prompts: the nearest word that the base knows."""
TRAINING = {
    "task": "object",
    "class_word": CLASS_WORD,
    "seed": 1,
    "samples": 0,
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


def show(folder: Path, log: Callable[[str], None] = print, on_progress: OnProgress | None = None) -> Path:
    """Run the demonstration; write ``demo.png``, which is returned, and the LoRA ``demo.safetensors`` to ``folder``.

    Args:
        on_progress: called with the training's progress, in place of a line in the log.
    """
    started = time.monotonic()
    settings = Settings.from_environment().model_copy(update={"base_model": "embedded"})
    use_threads(settings)
    base = load_base(settings, for_training=True)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".demo-") as job_folder:
        show_progress = on_progress or (lambda progress: log(progress.line()))
        trainer = Trainer(base, Path(job_folder), on_progress=show_progress, log=log)
        result = trainer.run(SUBJECT, TrainConfig.of(dict(TRAINING)))
        lora_path = result.path.replace(folder / "demo.safetensors")
    pictures, judge = read_subject(SUBJECT), ImageJudge.load()
    evaluation = Evaluation(
        PROMPTS, base_subject=f"a {CLASS_WORD}", similarity=lambda images: judge.similarity(images, pictures)
    )
    rows, metrics = evaluate(base, read_lora(lora_path), evaluation)
    lines = metrics.lines("by the image judge, at most 1; about 0 is another creature")
    lines.insert(
        1, f"the most that this base can draw, which is the pictures' own: {_ceiling(base, judge, pictures):.2f}"
    )
    draw_grid([ImageRow("taught with", pictures[: len(PROMPTS)]), *rows], lines).save(folder / "demo.png")
    for line in lines:
        log(line)
    log(f"{folder / 'demo.png'} shows it and {lora_path} is the LoRA, after {time.monotonic() - started:.0f} s")
    return folder / "demo.png"


def read_subject(path: Path) -> list[Image.Image]:
    """Read the training pictures of a subject from a zip, without their masks."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".png") and ".mask" not in name)
        return [Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in names]


def _ceiling(base: DiffusionBase, judge: ImageJudge, pictures: Sequence[Image.Image]) -> float:
    """Return the similarity of each picture, encoded and decoded by the base's VAE, with the other ones."""
    side = base.defaults.resolution
    decoded = reconstruct(base, [picture.resize((side, side)) for picture in pictures])
    cosines = judge.embed(decoded) @ judge.embed(pictures).T
    return float((cosines.sum() - cosines.trace()) / (cosines.numel() - len(pictures)))
