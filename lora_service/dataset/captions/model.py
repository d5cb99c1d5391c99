"""Captions by a model: sentences (BLIP and similar models), or tags (a multi-label image classifier)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lora_service.dataset.options import CaptionModelRef
from lora_service.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

CaptionImages = Callable[[Sequence["Image.Image"]], list[str]]
"""A function from RGB images to one caption each."""
_BATCH_SIZE = 8
_MAX_NEW_TOKENS = 40


def load_caption_model(model: CaptionModelRef) -> CaptionImages:
    """Load a captioning or tagging model.

    Raises:
        InputError: there is no such model, or it neither captions nor classifies images.
    """
    from transformers import AutoConfig  # torch and transformers take seconds to import, and most jobs need neither

    source: dict[str, Any] = {"cache_dir": model.cache, "token": model.token or None}
    try:
        architecture = (AutoConfig.from_pretrained(model.name, **source).architectures or [""])[0]
        if architecture.endswith("ForImageClassification"):
            return _load_tagger(model, source)
        return _load_captioner(model, source)
    except (OSError, ValueError, KeyError) as error:
        expected = (
            "a folder or hub id of a model that describes pictures, such as Salesforce/blip-image-captioning-base"
        )
        raise InputError("caption_model", model.name, expected) from error


def _load_captioner(model: CaptionModelRef, source: dict[str, Any]) -> CaptionImages:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(model.name, **source)
    network = AutoModelForImageTextToText.from_pretrained(model.name, **source).to(model.device).eval()

    @torch.inference_mode()
    def write_captions(images: Sequence[Image.Image]) -> list[str]:
        captions: list[str] = []
        for batch in _batches(images):
            inputs = processor(images=batch, return_tensors="pt").to(model.device)
            tokens = network.generate(**inputs, max_new_tokens=_MAX_NEW_TOKENS, num_beams=3, do_sample=False)
            captions += [text.strip() for text in processor.batch_decode(tokens, skip_special_tokens=True)]
        return captions

    return write_captions


def _load_tagger(model: CaptionModelRef, source: dict[str, Any]) -> CaptionImages:
    import torch
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    processor = AutoImageProcessor.from_pretrained(model.name, **source)
    network = AutoModelForImageClassification.from_pretrained(model.name, **source).to(model.device).eval()
    labels = [network.config.id2label[index].replace("_", " ") for index in range(network.config.num_labels)]

    @torch.inference_mode()
    def write_tags(images: Sequence[Image.Image]) -> list[str]:
        captions: list[str] = []
        for batch in _batches(images):
            inputs = processor(images=batch, return_tensors="pt").to(model.device)
            for scores in network(**inputs).logits.sigmoid().tolist():
                ranked = sorted(zip(scores, labels, strict=True), reverse=True)
                captions.append(", ".join(label for score, label in ranked if score >= model.tag_threshold))
        return captions

    return write_tags


def _batches(images: Sequence[Image.Image]) -> list[list[Image.Image]]:
    return [list(images[start : start + _BATCH_SIZE]) for start in range(0, len(images), _BATCH_SIZE)]
