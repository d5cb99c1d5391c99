"""The judge of pictures and texts, which any CLIP of transformers' classes can be, and the folders of the judges.

That of pictures alone is :class:`lora_service.models.image_judge.ImageJudge`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

JUDGES = Path(__file__).parents[2] / "benchmarks" / "judges"
"""The folder of the judges that ``tools.judges.build`` trains, but for the image judge, which the package has."""
IMAGE_TEXT = JUDGES / "image_text"


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

    def embed(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Return the pictures' embeddings ``(n, d)`` of unit length."""
        with torch.inference_mode():
            features = self.model.vision_model(pixel_values=self._pixels(pictures)).pooler_output
            return torch.nn.functional.normalize(self.model.visual_projection(features), dim=1)

    def similarities(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> torch.Tensor:
        """Return the cosines ``(pictures, texts)``, −1 to 1."""
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            outputs = self.model(pixel_values=self._pixels(pictures), **tokens)
        return outputs.image_embeds @ outputs.text_embeds.T

    def _pixels(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        pixels: torch.Tensor = self.processor([p.convert("RGB") for p in pictures], return_tensors="pt").pixel_values
        return pixels

    def top_1_accuracy(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> float:
        """Return the share of ``pictures`` that are most similar to the text at the same index in ``texts``."""
        best = self.similarities(pictures, texts).argmax(dim=1)
        return float((best == torch.arange(len(best))).float().mean())
