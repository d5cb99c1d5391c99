"""The reader, a classifier of pictures of one thing: its colour, its background, its kind and its place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from tools.embedded.loop import Plan, fit
from tools.embedded.pool import SIZE, to_tensor
from tools.judges.datasets import attribute_dataset, augment
from tools.judges.judging import JUDGES
from tools.judges.questions import NO_ANSWER, QUESTIONS

READER = JUDGES / "reader"
BATCH = 128
PICTURES = 40_000
STEPS = 3_000


class Reader(nn.Module):
    """Convolutions to 8 × 8, a fully connected layer, which places need, and a linear head for each question."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        # The attributes' names are those in the saved weights.
        self.look = nn.Sequential(
            *_convolution(3, 32, 2), *_convolution(32, 64, 2), *_convolution(64, 128, 2), *_convolution(128, 128, 1),
            nn.Conv2d(128, 16, 1), nn.Flatten(), nn.Linear(16 * (SIZE // 8) ** 2, 192), nn.ReLU(),
        )  # fmt: skip
        self.heads = nn.ModuleDict({name: nn.Linear(192, len(choices)) for name, choices in QUESTIONS.items()})

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the logits ``(n, answers)`` of each question, from ``pictures`` ``(n, 3, 64, 64)`` in [-1, 1]."""
        features = self.look(pictures)
        return {name: head(features).float() for name, head in self.heads.items()}

    def read(self, pictures: Sequence[Image.Image]) -> list[dict[str, str]]:
        """Return the most likely answer to each question, for each picture."""
        arrays = np.stack([np.asarray(p.convert("RGB").resize((SIZE, SIZE))) for p in pictures])
        with torch.inference_mode():
            classes = {name: logits.argmax(dim=1).tolist() for name, logits in self(to_tensor(arrays)).items()}
        return [{name: QUESTIONS[name][classes[name][i]] for name in QUESTIONS} for i in range(len(pictures))]

    def save(self, folder: Path) -> None:
        """Write the weights in fp16, and the answers that their classes stand for."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {k: v.half() if v.is_floating_point() else v for k, v in self.state_dict().items()}
        save_file({k: v.contiguous() for k, v in weights.items()}, folder / "model.safetensors")
        (folder / "questions.json").write_text(json.dumps(QUESTIONS, indent=1) + "\n")

    @staticmethod
    def load(folder: Path = READER) -> Reader:
        """Load the reader of ``folder``.

        Raises:
            ValueError: the synthetic dataset has changed since the training, so that the classes have other meanings.
        """
        questions = json.loads((folder / "questions.json").read_text())
        if questions != {name: list(choices) for name, choices in QUESTIONS.items()}:
            raise ValueError(
                f"{folder} was trained on another synthetic dataset; `python -m tools.judges.build` trains a new one."
            )
        reader = Reader()
        reader.load_state_dict(load_file(folder / "model.safetensors"))
        return reader.eval()


def _convolution(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def reading_loss(logits: dict[str, torch.Tensor], classes: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy over questions; ``classes`` ``(n, questions)`` may hold ``NO_ANSWER``."""
    losses = [
        F.cross_entropy(logits[name], column, ignore_index=NO_ANSWER, label_smoothing=0.05)
        for name, column in zip(QUESTIONS, classes.T, strict=True)
    ]
    return torch.stack(losses).mean()


def train(work: Path, steps: int = STEPS, pictures: int = PICTURES) -> Reader:
    """Train a reader; its pictures include held-out combinations, which it must recognise too."""
    reader = Reader()
    data, classes = attribute_dataset(pictures, work)

    def loss_of_step(step: int, generator: torch.Generator) -> torch.Tensor:
        indices = torch.randint(len(data), (BATCH,), generator=generator)
        x = augment(to_tensor(data[indices.numpy()]), generator).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            logits = reader(x)
        return reading_loss(logits, classes[indices])

    fit(reader, loss_of_step, Plan(steps, 2e-3, ema_decay=0.998), work / "reader.pt")
    return reader
