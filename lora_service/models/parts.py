"""What a loader gives, wherever the weights came from, and the refusal of what is no base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTokenizer

from lora_service.errors import BaseModelError
from lora_service.models.catalog import ACCEPTED
from lora_service.models.text import TextEncoder


@dataclass(frozen=True, eq=False)
class Parts:
    """A base's models as loaded; names of text encoders and tokenizers are those of diffusers' folders."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoders: Mapping[str, TextEncoder]
    tokenizers: Mapping[str, CLIPTokenizer]
    scheduler_config: Mapping[str, Any]
    blank_is_zero: bool = False

    @staticmethod
    def of(pipeline: Any) -> Parts:
        """The parts of one of diffusers' pipelines."""
        ends = [end for end in ("", "_2") if getattr(pipeline, f"text_encoder{end}", None) is not None]
        return Parts(
            unet=pipeline.unet,
            vae=pipeline.vae,
            text_encoders={f"text_encoder{end}": getattr(pipeline, f"text_encoder{end}") for end in ends},
            tokenizers={f"text_encoder{end}": getattr(pipeline, f"tokenizer{end}") for end in ends},
            scheduler_config=pipeline.scheduler.config,
            blank_is_zero=bool(pipeline.config.get("force_zeros_for_empty_prompt")),
        )


_KINDS_BY_CHANNELS = {5: "is a model that draws by depth", 8: "is a model that edits by instructions (pix2pix)"}


def refuse_channels(name: str, channels: int, latent_channels: int = 4) -> None:
    """Raises unless a UNet of so many input channels takes a VAE's latents and nothing else."""
    if channels != latent_channels:
        kind = _KINDS_BY_CHANNELS.get(channels, "is an inpainting model")
        raise refusal(name, f"{kind} ({channels} input channels)")


def refusal(name: str, reason: str) -> BaseModelError:
    """The error about ``BASE_MODEL`` ``name``, which ``reason`` (as the end of "it …") makes no base."""
    return BaseModelError(f"BASE_MODEL {name!r} {reason}; it must be {ACCEPTED}.")
