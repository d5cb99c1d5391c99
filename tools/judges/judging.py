"""Judges: the similarity of pictures to each other, and of pictures to texts.

Any CLIP of transformers' classes can be either judge; any vision model with a class token, such as DINO,
can be the image judge.
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

JUDGES = Path(__file__).parents[2] / "benchmarks" / "judges"
"""The folder of the judges that ``tools.judges.build`` trains."""
IMAGE, IMAGE_TEXT = JUDGES / "image", JUDGES / "image_text"


class ImageJudge:
    """Computes the similarity of pictures, the cosine of their embeddings."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model.eval(), processor

    @staticmethod
    def load(source: str | Path = IMAGE) -> ImageJudge:
        """Load the image encoder of a folder or a hub id: a CLIP, or a model with a class token, such as DINO."""
        is_clip = AutoConfig.from_pretrained(source).model_type.startswith("clip")
        kind = CLIPVisionModelWithProjection if is_clip else AutoModel
        return ImageJudge(kind.from_pretrained(source, dtype=torch.float32), AutoImageProcessor.from_pretrained(source))

    def embed(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Return the embeddings ``(n, d)`` of unit length."""
        pixels = self.processor([p.convert("RGB") for p in pictures], return_tensors="pt").pixel_values
        with torch.inference_mode():
            outputs = self.model(pixel_values=pixels)
        embeds = getattr(outputs, "image_embeds", None)
        return F.normalize(outputs.last_hidden_state[:, 0] if embeds is None else embeds, dim=1)

    def similarity(self, pictures: Sequence[Image.Image], subject: Sequence[Image.Image]) -> float:
        """Return the mean cosine, −1 to 1, of each of ``pictures`` with each of the ``subject``'s."""
        return float((self.embed(pictures) @ self.embed(subject).T).mean())


class TextJudge:
    """Computes the similarity of pictures to texts."""

    def __init__(self, model: CLIPModel, tokenizer: Any, processor: Any) -> None:
        self.model, self.tokenizer, self.processor = model.eval(), tokenizer, processor

    @staticmethod
    def load(source: str | Path = IMAGE_TEXT) -> TextJudge:
        """Load the CLIP model of a folder or a hub id."""
        return TextJudge(
            CLIPModel.from_pretrained(source, dtype=torch.float32),
            AutoTokenizer.from_pretrained(source),
            AutoImageProcessor.from_pretrained(source),
        )

    def similarities(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> torch.Tensor:
        """Return the cosines ``(pictures, texts)``, −1 to 1."""
        pixels = self.processor([p.convert("RGB") for p in pictures], return_tensors="pt").pixel_values
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            outputs = self.model(pixel_values=pixels, **tokens)
        return outputs.image_embeds @ outputs.text_embeds.T

    def top_1_accuracy(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> float:
        """Return the share of ``pictures`` that are most similar to the text at the same index in ``texts``."""
        best = self.similarities(pictures, texts).argmax(dim=1)
        return float((best == torch.arange(len(best))).float().mean())
