"""A reader of pictures of one thing: its colour, its background, what it is and where it stands."""

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
from tools.judges.augment import soften
from tools.judges.folders import READER
from tools.judges.pools import readings
from tools.judges.questions import QUESTIONS, UNTOLD

BATCH = 128
PICTURES = 40_000
STEPS = 3_000


class Reader(nn.Module):
    """Convolutions to 8 × 8, then a layer that sees all of it, as places are asked too; a head for each question."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.look = nn.Sequential(
            *_convolution(3, 32, 2), *_convolution(32, 64, 2), *_convolution(64, 128, 2), *_convolution(128, 128, 1),
            nn.Conv2d(128, 16, 1), nn.Flatten(), nn.Linear(16 * (SIZE // 8) ** 2, 192), nn.ReLU(),
        )  # fmt: skip
        self.heads = nn.ModuleDict({name: nn.Linear(192, len(known)) for name, known in QUESTIONS.items()})

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits ``(n, answers)`` for each question, of ``pictures`` ``(n, 3, 64, 64)`` in [-1, 1]."""
        seen = self.look(pictures)
        return {name: head(seen).float() for name, head in self.heads.items()}

    def read(self, pictures: Sequence[Image.Image]) -> list[dict[str, str]]:
        """The likeliest answer to each question, of each picture."""
        arrays = np.stack([np.asarray(p.convert("RGB").resize((SIZE, SIZE))) for p in pictures])
        with torch.inference_mode():
            chosen = {name: logits.argmax(dim=1).tolist() for name, logits in self(to_tensor(arrays)).items()}
        return [{name: QUESTIONS[name][chosen[name][i]] for name in QUESTIONS} for i in range(len(pictures))]

    def save(self, folder: Path) -> None:
        """Write the weights in fp16, with the answers they stand for."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {k: v.half() if v.is_floating_point() else v for k, v in self.state_dict().items()}
        save_file({k: v.contiguous() for k, v in weights.items()}, folder / "model.safetensors")
        (folder / "questions.json").write_text(json.dumps(QUESTIONS, indent=1) + "\n")

    @staticmethod
    def load(folder: Path = READER) -> Reader:
        """The reader of ``folder``.

        Raises:
            ValueError: the synthetic dataset has changed since it was trained, so that its answers mean something else.
        """
        learned = json.loads((folder / "questions.json").read_text())
        if learned != {name: list(known) for name, known in QUESTIONS.items()}:
            raise ValueError(
                f"{folder} was trained on another synthetic dataset; `python -m tools.judges.build` trains it anew."
            )
        reader = Reader()
        reader.load_state_dict(load_file(folder / "model.safetensors"))
        return reader.eval()


def _convolution(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def reading_loss(logits: dict[str, torch.Tensor], numbers: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over questions; ``numbers`` ``(n, questions)`` holds ``UNTOLD`` where none is asked."""
    told = [
        F.cross_entropy(logits[name], column, ignore_index=UNTOLD, label_smoothing=0.05)
        for name, column in zip(QUESTIONS, numbers.T, strict=True)
    ]
    return torch.stack(told).mean()


def train(work: Path, steps: int = STEPS, pictures: int = PICTURES) -> Reader:
    """The trained reader; its pictures show held-out combinations too, as it must know all answers."""
    reader = Reader()
    data, numbers = readings(pictures, work)

    def loss_of_step(step: int, generator: torch.Generator) -> torch.Tensor:
        picked = torch.randint(len(data), (BATCH,), generator=generator)
        x = soften(to_tensor(data[picked.numpy()]), generator).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            logits = reader(x)
        return reading_loss(logits, numbers[picked])

    fit(reader, loss_of_step, Plan(steps, 2e-3, average=0.998), work / "reader.pt")
    return reader
