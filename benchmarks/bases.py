"""Loading the base model to benchmark, and reconstructing pictures with its VAE."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.loading import load_base, use_threads
from lora_service.settings import Settings


def load_named_base(name: str, *, for_training: bool = False) -> DiffusionBase:
    """Load the base model ``name``, a value of ``BASE_MODEL``, with the environment's other settings."""
    settings = Settings.from_environment().model_copy(update={"base_model": name})
    use_threads(settings)
    return load_base(settings, for_training=for_training)


def reconstruct(base: DiffusionBase, pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Encode and decode ``pictures``, of one size, with the base's VAE: the best that the base can draw."""
    arrays = np.stack([np.asarray(p.convert("RGB"), np.float32) for p in pictures])
    pixels = torch.from_numpy(arrays).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.inference_mode():
        decoded = [base.decode(base.scale_latents(base.posterior(chunk).mean)) for chunk in pixels.split(32)]
    scaled = ((torch.cat(decoded).float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte()
    return [Image.fromarray(array) for array in scaled.permute(0, 2, 3, 1).numpy()]
