"""An image encoder that knows a subject again: in CLIP's vision class, taught by contrast."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPModel, CLIPVisionModelWithProjection

from tools.embedded.loop import Plan, fit
from tools.embedded.pool import to_tensor
from tools.judges.augment import melt, soften
from tools.judges.image_text import vision_config
from tools.judges.pools import PER_SUBJECT, subject_pictures
from tools.synthetic.subjects import KINDS

SUBJECTS = 3_000
"""Of each kind."""
PER_STEP = 64
STEPS = 1_800
SCALE = 20.0
"""What cosines are multiplied by in the contrast."""


class Encoder(nn.Module):
    """The vision model as it is saved, with embeddings of unit length."""

    def __init__(self, eyes: CLIPModel | None) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.model = CLIPVisionModelWithProjection(vision_config())
        if eyes is not None:
            self.model.vision_model.load_state_dict(eyes.vision_model.state_dict())

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.model(pictures).image_embeds.float(), dim=1)


def knows_again(one: torch.Tensor, other: torch.Tensor, melted: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of finding each subject of ``one`` in ``other``, and the other way round, embeddings ``(n, d)``.

    It is to be told from all other subjects, and from all ``melted`` ones, which have its colours and not its shape.
    """
    own = torch.arange(len(one))
    choices = ((one, torch.cat([other, melted])), (other, torch.cat([one, melted])))
    return torch.stack([F.cross_entropy(SCALE * a @ b.T, own) for a, b in choices]).mean()


def train(work: Path, eyes: CLIPModel | None, steps: int = STEPS, count: int = SUBJECTS) -> Encoder:
    """The trained encoder; ``eyes`` is a model that sees already and is where it starts.

    Each step asks of subjects of one kind which two pictures show the same, so that
    it learns to tell a face from other faces, and not from creatures.
    """
    encoder = Encoder(eyes)
    pools = [subject_pictures(kind, count, work) for kind in KINDS]

    def loss_of_step(step: int, generator: torch.Generator) -> torch.Tensor:
        data = pools[step % len(pools)]  # (subjects, PER_SUBJECT, 64, 64, 3)
        who = torch.randperm(len(data), generator=generator)[:PER_STEP]
        first = torch.randint(PER_SUBJECT, (PER_STEP,), generator=generator)
        second = (first + torch.randint(1, PER_SUBJECT, (PER_STEP,), generator=generator)) % PER_SUBJECT
        pairs = np.concatenate([data[who.numpy(), first.numpy()], data[who.numpy(), second.numpy()]])
        x = to_tensor(pairs)
        x = soften(torch.cat([x, melt(x[PER_STEP:], generator)]), generator)
        with torch.autocast("cpu", torch.bfloat16):
            return knows_again(*encoder(x).chunk(3))

    fit(encoder, loss_of_step, Plan(steps, 5e-4, decay_from=0.4, average=0.998), work / "image.pt")
    return encoder
