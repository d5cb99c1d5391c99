"""An image encoder that recognises a subject in other scenes: CLIP's vision model, with a contrastive loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPModel, CLIPVisionModelWithProjection

from tools.embedded.loop import Plan, fit
from tools.embedded.pool import to_tensor
from tools.judges.datasets import PICTURES_PER_SUBJECT, augment, melt, subject_dataset
from tools.judges.image_text import vision_config
from tools.synthetic.subjects import KINDS

SUBJECTS = 3_000
"""Number of subjects of each kind."""
BATCH = 64
STEPS = 1_800
SCALE = 20.0
"""Inverse temperature of the contrastive loss."""


class ImageEncoder(nn.Module):
    """CLIP's vision model with embeddings of unit length; ``pretrained`` gives its first weights."""

    def __init__(self, pretrained: CLIPModel | None) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.model = CLIPVisionModelWithProjection(vision_config())
        if pretrained is not None:
            self.model.vision_model.load_state_dict(pretrained.vision_model.state_dict())

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return the embeddings ``(n, 128)`` of ``pictures`` ``(n, 3, 64, 64)`` in [-1, 1]."""
        return F.normalize(self.model(pictures).image_embeds.float(), dim=1)


def contrastive_loss(first: torch.Tensor, second: torch.Tensor, melted: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of matching the subjects of ``first`` and ``second``, embeddings ``(n, d)``.

    The negatives are all other subjects, and all ``melted`` pictures, which have a subject's colours but not its shape.
    """
    labels = torch.arange(len(first))
    pairs = ((first, torch.cat([second, melted])), (second, torch.cat([first, melted])))
    return torch.stack([F.cross_entropy(SCALE * a @ b.T, labels) for a, b in pairs]).mean()


def train(work: Path, pretrained: CLIPModel | None, steps: int = STEPS, count: int = SUBJECTS) -> ImageEncoder:
    """Train an encoder, which starts from the vision model of ``pretrained``.

    Each batch holds subjects of one kind, so that the encoder learns to distinguish a face from other faces,
    and not from creatures.
    """
    encoder = ImageEncoder(pretrained)
    pools = [subject_dataset(kind, count, work) for kind in KINDS]

    def loss_of_step(step: int, generator: torch.Generator) -> torch.Tensor:
        data = pools[step % len(pools)]  # (subjects, PICTURES_PER_SUBJECT, 64, 64, 3)
        subjects = torch.randperm(len(data), generator=generator)[:BATCH]
        first = torch.randint(PICTURES_PER_SUBJECT, (BATCH,), generator=generator)
        offset = torch.randint(1, PICTURES_PER_SUBJECT, (BATCH,), generator=generator)
        second = (first + offset) % PICTURES_PER_SUBJECT
        x = to_tensor(np.concatenate([data[subjects.numpy(), scene.numpy()] for scene in (first, second)]))
        x = augment(torch.cat([x, melt(x[BATCH:], generator)]), generator)
        with torch.autocast("cpu", torch.bfloat16):
            return contrastive_loss(*encoder(x).chunk(3))

    fit(encoder, loss_of_step, Plan(steps, 5e-4, decay_from=0.4, ema_decay=0.998), work / "image.pt")
    return encoder
