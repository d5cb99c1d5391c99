"""An image-text model in CLIP's classes, learned on the synthetic dataset's pictures and captions."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from tools.embedded import tokenizer
from tools.embedded.loop import Plan, fit
from tools.embedded.pool import SIZE, to_tensor
from tools.embedded.tokenizer import POSITIONS
from tools.judges.augment import soften
from tools.judges.pools import captioned
from tools.judges.questions import QUESTIONS
from tools.judges.reader import reading_loss

BATCH = 128
PICTURES = 40_000
STEPS = 1_400
WIDTH, HEADS = 128, 4
VISION_LAYERS, TEXT_LAYERS = 3, 2


def vision_config() -> CLIPVisionConfig:
    """A transformer over 8 × 8 patches of 8 × 8 pixels."""
    return CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=HEADS,
        projection_dim=WIDTH,
        image_size=SIZE,
        patch_size=8,
    )


class Pupil(nn.Module):
    """The CLIP model, and the heads that teach it to see and are thrown away.

    A contrast of captions alone says little of what to look at in the beginning;
    naming colour, background, thing and place outright starts it several times sooner.
    """

    def __init__(self, words: CLIPTokenizer) -> None:
        super().__init__()
        torch.manual_seed(3)
        text = CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=TEXT_LAYERS,
            num_attention_heads=HEADS,
            projection_dim=WIDTH,
            max_position_embeddings=POSITIONS,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
        self.clip = CLIPModel(
            CLIPConfig(text_config=text.to_dict(), vision_config=vision_config().to_dict(), projection_dim=WIDTH)
        )
        self.heads = nn.ModuleDict({name: nn.Linear(WIDTH, len(known)) for name, known in QUESTIONS.items()})

    def forward(
        self, pictures: torch.Tensor, ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Embeddings of ``pictures`` and of the captions ``ids``, of unit length, and the heads' logits."""
        seen = self.clip.vision_model(pictures).pooler_output
        read = self.clip.text_model(ids).pooler_output
        images, texts = self.clip.visual_projection(seen).float(), self.clip.text_projection(read).float()
        answers = {name: head(seen).float() for name, head in self.heads.items()}
        return F.normalize(images, dim=1), F.normalize(texts, dim=1), answers


def contrast(images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """CLIP's loss (Radford et al., 2021): each picture finds its caption among the batch's, and the other way round."""
    logits = images @ texts.T * scale
    own = torch.arange(len(logits))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def train(work: Path, steps: int = STEPS, pictures: int = PICTURES) -> tuple[CLIPModel, CLIPTokenizer]:
    """The trained model and its tokenizer."""
    data, captions, numbers = captioned(pictures, work)
    words = tokenizer.train(captions)
    ids = words(captions, padding=True, truncation=True, return_tensors="pt").input_ids
    model = Pupil(words)

    def loss_of_step(step: int, generator: torch.Generator) -> torch.Tensor:
        picked = torch.randint(len(data), (BATCH,), generator=generator)
        x = soften(to_tensor(data[picked.numpy()]), generator)
        with torch.autocast("cpu", torch.bfloat16):
            images, texts, answers = model(x, ids[picked])
        scale = model.clip.logit_scale.exp().clamp(max=100)
        return contrast(images, texts, scale) + reading_loss(answers, numbers[picked])

    fit(model, loss_of_step, Plan(steps, 1e-3, warmup=200, decay_from=0.4, average=0.998), work / "image_text.pt")
    return model.clip, words
