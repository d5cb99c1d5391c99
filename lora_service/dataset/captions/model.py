"""Captions written by a model: sentences (BLIP and its like), or tags (an image classifier of many labels)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_service.errors import InputError
from lora_service.settings import Settings

if TYPE_CHECKING:
    from PIL import Image

CaptionImages = Callable[[Sequence["Image.Image"]], list[str]]
"""RGB pictures to one caption each."""
_BATCH = 8
_MOST_TOKENS = 40


@dataclass(frozen=True)
class CaptionModelRef:
    """The model that writes captions.

    Args:
        name: a folder, or a hub id such as "Salesforce/blip-image-captioning-base". A classifier writes tags.
        cache: where a model from the hub is kept; none: transformers' own place.
        token: of the hub, for a model that needs one.
        device: as torch names it.
        tag_threshold: how probable a tag must be, 0 to 1.
    """

    name: str
    cache: Path | None = None
    token: str = field(default="", repr=False)
    device: str = "cpu"
    tag_threshold: float = 0.35

    @staticmethod
    def from_settings(settings: Settings) -> CaptionModelRef | None:
        """The model that the environment names, if it does."""
        if not settings.caption_model:
            return None
        token = settings.hf_token.get_secret_value()
        return CaptionModelRef(settings.caption_model, cache=settings.model_cache, token=token)


def load_caption_model(model: CaptionModelRef) -> CaptionImages:
    """The model, loaded and ready.

    Raises:
        InputError: there is no such model, or it neither describes nor classifies pictures.
    """
    from transformers import AutoConfig  # torch and transformers take seconds to import, and most jobs need neither

    source: dict[str, Any] = {"cache_dir": model.cache, "token": model.token or None}
    try:
        architecture = (AutoConfig.from_pretrained(model.name, **source).architectures or [""])[0]
        if architecture.endswith("ForImageClassification"):
            return _tagger(model, source)
        return _describer(model, source)
    except (OSError, ValueError, KeyError) as error:
        wanted = "a folder or hub id of a model that describes pictures, such as Salesforce/blip-image-captioning-base"
        raise InputError("caption_model", model.name, wanted) from error


def _describer(model: CaptionModelRef, source: dict[str, Any]) -> CaptionImages:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(model.name, **source)
    network = AutoModelForImageTextToText.from_pretrained(model.name, **source).to(model.device).eval()

    @torch.inference_mode()
    def describe(images: Sequence[Image.Image]) -> list[str]:
        captions: list[str] = []
        for batch in _batches(images):
            inputs = processor(images=batch, return_tensors="pt").to(model.device)
            tokens = network.generate(**inputs, max_new_tokens=_MOST_TOKENS, num_beams=3, do_sample=False)
            captions += [text.strip() for text in processor.batch_decode(tokens, skip_special_tokens=True)]
        return captions

    return describe


def _tagger(model: CaptionModelRef, source: dict[str, Any]) -> CaptionImages:
    import torch
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    processor = AutoImageProcessor.from_pretrained(model.name, **source)
    network = AutoModelForImageClassification.from_pretrained(model.name, **source).to(model.device).eval()
    labels = [network.config.id2label[index].replace("_", " ") for index in range(network.config.num_labels)]

    @torch.inference_mode()
    def tag(images: Sequence[Image.Image]) -> list[str]:
        captions: list[str] = []
        for batch in _batches(images):
            inputs = processor(images=batch, return_tensors="pt").to(model.device)
            for scores in network(**inputs).logits.sigmoid().tolist():
                likely = sorted(zip(scores, labels, strict=True), reverse=True)
                captions.append(", ".join(label for score, label in likely if score >= model.tag_threshold))
        return captions

    return tag


def _batches(images: Sequence[Image.Image]) -> list[list[Image.Image]]:
    return [list(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]
