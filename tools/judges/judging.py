"""Judges at work: how alike pictures are, and how well they suit a text.

Any CLIP of transformers' classes serves as either; any vision model with a
class token, such as DINO, as the image judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    CLIPModel,
    CLIPVisionModelWithProjection,
)

from tools.judges.folders import IMAGE, IMAGE_TEXT


class ImageJudge:
    """Says how alike pictures are, by the cosine of their embeddings."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model.eval(), processor

    @staticmethod
    def load(source: str | Path = IMAGE) -> ImageJudge:
        """The image encoder in a folder, or of a hub id: a CLIP, or anything with a class token, like DINO."""
        is_clip = AutoConfig.from_pretrained(source).model_type.startswith("clip")
        kind = CLIPVisionModelWithProjection if is_clip else AutoModel
        return ImageJudge(kind.from_pretrained(source, dtype=torch.float32), AutoImageProcessor.from_pretrained(source))

    def embed(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Embeddings ``(n, d)`` of unit length."""
        pixels = self.processor([p.convert("RGB") for p in pictures], return_tensors="pt").pixel_values
        with torch.inference_mode():
            seen = self.model(pixel_values=pixels)
        embedded = getattr(seen, "image_embeds", None)
        return F.normalize(seen.last_hidden_state[:, 0] if embedded is None else embedded, dim=1)

    def similarity(self, pictures: Sequence[Image.Image], subject: Sequence[Image.Image]) -> float:
        """Mean cosine, −1 to 1, of each of ``pictures`` with each of the ``subject``'s."""
        return float((self.embed(pictures) @ self.embed(subject).T).mean())


class TextJudge:
    """Says how well pictures suit texts."""

    def __init__(self, model: CLIPModel, tokenizer: Any, processor: Any) -> None:
        self.model, self.tokenizer, self.processor = model.eval(), tokenizer, processor

    @staticmethod
    def load(source: str | Path = IMAGE_TEXT) -> TextJudge:
        """The CLIP model in a folder, or of a hub id."""
        return TextJudge(
            CLIPModel.from_pretrained(source, dtype=torch.float32),
            AutoTokenizer.from_pretrained(source),
            AutoImageProcessor.from_pretrained(source),
        )

    def similarities(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> torch.Tensor:
        """Cosines ``(pictures, texts)``, −1 to 1."""
        pixels = self.processor([p.convert("RGB") for p in pictures], return_tensors="pt").pixel_values
        read = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            judged = self.model(pixel_values=pixels, **read)
        return judged.image_embeds @ judged.text_embeds.T

    def own_text_first(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> float:
        """Share of ``pictures`` that suit the text at their own place in ``texts`` better than every other."""
        best = self.similarities(pictures, texts).argmax(dim=1)
        return float((best == torch.arange(len(best))).float().mean())
