"""Judges how alike pictures are, by an image encoder: a CLIP, or a vision model with a class token, such as DINO."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn import functional as F
from transformers import AutoConfig, AutoImageProcessor, AutoModel, CLIPVisionModelWithProjection

from lora_service.errors import SettingError
from lora_service.settings import Settings

EMBEDDED_JUDGE = Path(__file__).parent / "embedded_judge"
"""The image encoder for the embedded base's pictures, which ``tools.judges.build`` trains."""
_AUTO, _NONE = "auto", "none"


class ImageJudge:
    """Computes the similarity of pictures, the cosine of their embeddings.

    Args:
        model: returns ``image_embeds`` ``(n, d)``, or ``last_hidden_state`` ``(n, tokens, d)``, the class token first.
        processor: makes its ``pixel_values`` of pictures.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model.eval(), processor

    @staticmethod
    def load(source: str | Path = EMBEDDED_JUDGE, **options: Any) -> ImageJudge:
        """Load the image encoder of a folder or a hub id.

        Args:
            options: of transformers' ``from_pretrained``, such as ``cache_dir`` and ``token``.

        Raises:
            OSError, ValueError, KeyError: there is none; as transformers raises them.
        """
        is_clip = AutoConfig.from_pretrained(source, **options).model_type.startswith("clip")
        kind = CLIPVisionModelWithProjection if is_clip else AutoModel
        model = kind.from_pretrained(source, dtype=torch.float32, **options)
        return ImageJudge(model, AutoImageProcessor.from_pretrained(source, **options))

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


def likeness_judge(settings: Settings) -> ImageJudge | None:
    """Return the judge that the settings name; None where there is none for the base.

    Raises:
        SettingError: ``LIKENESS_MODEL`` is no such model.
    """
    name = settings.likeness_model
    if name == _NONE or (name == _AUTO and settings.base_model != "embedded"):
        return None
    if name == _AUTO:
        return ImageJudge.load()
    options = {"cache_dir": settings.model_cache, "token": settings.hf_token.get_secret_value() or None}
    try:
        return ImageJudge.load(name, **options)
    except (OSError, ValueError, KeyError) as error:
        expected = "auto, none, or a folder or hub id of a CLIP or a DINO, such as facebook/dinov2-small"
        raise SettingError("LIKENESS_MODEL", name, expected) from error
