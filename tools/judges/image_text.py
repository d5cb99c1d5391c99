"""An image-text model in CLIP's classes, trained on the synthetic dataset's pictures and captions."""

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
from tools.judges.datasets import augment, captioned_dataset
from tools.judges.questions import QUESTIONS
from tools.judges.reader import reading_loss

BATCH = 128
PICTURES = 40_000
STEPS = 1_400
WIDTH, HEADS = 128, 4
VISION_LAYERS, TEXT_LAYERS = 3, 2


def vision_config() -> CLIPVisionConfig:
    """Return the configuration of a transformer over 8 × 8 patches of 8 × 8 pixels."""
    return CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=HEADS,
        projection_dim=WIDTH,
        image_size=SIZE,
        patch_size=8,
    )


class ImageTextModel(nn.Module):
    """The CLIP model, with auxiliary classification heads that are discarded after the training.

    In the beginning the contrastive loss alone gives little gradient; with the classification of colour, background,
    thing and place beside it, learning starts several times sooner.
    """

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        torch.manual_seed(3)
        text = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=TEXT_LAYERS,
            num_attention_heads=HEADS,
            projection_dim=WIDTH,
            max_position_embeddings=POSITIONS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        self.clip = CLIPModel(
            CLIPConfig(text_config=text.to_dict(), vision_config=vision_config().to_dict(), projection_dim=WIDTH)
        )
        self.heads = nn.ModuleDict({name: nn.Linear(WIDTH, len(choices)) for name, choices in QUESTIONS.items()})

    def forward(
        self, pictures: torch.Tensor, ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Return unit-length embeddings of ``pictures`` and of the captions' token ``ids``, and the heads' logits."""
        image_features = self.clip.vision_model(pictures).pooler_output
        text_features = self.clip.text_model(ids).pooler_output
        image_embeds = self.clip.visual_projection(image_features).float()
        text_embeds = self.clip.text_projection(text_features).float()
        logits = {name: head(image_features).float() for name, head in self.heads.items()}
        return F.normalize(image_embeds, dim=1), F.normalize(text_embeds, dim=1), logits


def contrastive_loss(image_embeds: torch.Tensor, text_embeds: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return CLIP's loss (Radford et al., 2021): cross-entropy of matching pictures and captions ``(n, d)``."""
    logits = image_embeds @ text_embeds.T * scale
    labels = torch.arange(len(logits))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def train(work: Path, steps: int = STEPS, pictures: int = PICTURES) -> tuple[CLIPModel, CLIPTokenizer]:
    """Train the model and its tokenizer."""
    data, captions, classes = captioned_dataset(pictures, work)
    clip_tokenizer = tokenizer.train(captions)
    ids = clip_tokenizer(captions, padding=True, truncation=True, return_tensors="pt").input_ids
    model = ImageTextModel(clip_tokenizer)

    def loss_of_step(step: int, generator: torch.Generator) -> torch.Tensor:
        indices = torch.randint(len(data), (BATCH,), generator=generator)
        x = augment(to_tensor(data[indices.numpy()]), generator)
        with torch.autocast("cpu", torch.bfloat16):
            image_embeds, text_embeds, logits = model(x, ids[indices])
        scale = model.clip.logit_scale.exp().clamp(max=100)
        return contrastive_loss(image_embeds, text_embeds, scale) + reading_loss(logits, classes[indices])

    fit(model, loss_of_step, Plan(steps, 1e-3, warmup=200, decay_from=0.4, ema_decay=0.998), work / "image_text.pt")
    return model.clip, clip_tokenizer
