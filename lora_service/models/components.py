"""What a loader gives, wherever the weights came from, and the refusal of what is no base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTokenizer

from lora_service.errors import BaseModelError
from lora_service.models.registry import ACCEPTED
from lora_service.models.text_encoders import TextEncoder


@dataclass(frozen=True, eq=False)
class Components:
    """A base's models as loaded; names of text encoders and tokenizers are those of diffusers' folders."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoders: Mapping[str, TextEncoder]
    tokenizers: Mapping[str, CLIPTokenizer]
    scheduler_config: Mapping[str, Any]
    blank_is_zero: bool = False

    @staticmethod
    def of(pipeline: Any) -> Components:
        """The parts of one of diffusers' pipelines."""
        ends = [end for end in ("", "_2") if getattr(pipeline, f"text_encoder{end}", None) is not None]
        return Components(
            unet=pipeline.unet,
            vae=pipeline.vae,
            text_encoders={f"text_encoder{end}": getattr(pipeline, f"text_encoder{end}") for end in ends},
            tokenizers={f"text_encoder{end}": getattr(pipeline, f"tokenizer{end}") for end in ends},
            scheduler_config=pipeline.scheduler.config,
            blank_is_zero=bool(pipeline.config.get("force_zeros_for_empty_prompt")),
        )


_A_WORD = "a</w>"
"""Every vocabulary of CLIP's kind holds it."""

_KINDS_BY_CHANNELS = {5: "is a model that draws by depth", 8: "is a model that edits by instructions (pix2pix)"}


def refuse_channels(name: str, channels: int, latent_channels: int = 4) -> None:
    """Raises unless a UNet of so many input channels takes a VAE's latents and nothing else."""
    if channels != latent_channels:
        kind = _KINDS_BY_CHANNELS.get(channels, "is an inpainting model")
        raise refusal(name, f"{kind} ({channels} input channels)")


def refuse_broken(name: str, components: Components) -> None:
    """Raises unless ``components`` are whole and go together.

    The libraries load what lacks weights, with nothing in their place, and what lacks a vocabulary, with an empty one.
    """
    refuse_channels(name, components.unet.config.in_channels, components.vae.config.latent_channels)
    models = {"unet": components.unet, "vae": components.vae, **components.text_encoders}
    gaps = (f"{part}.{key}" for part, model in models.items() for key, p in model.named_parameters() if p.is_meta)
    if first := next(gaps, None):
        raise refusal(name, f"lacks weights, like {first}")
    for encoder, tokenizer in components.tokenizers.items():
        if _A_WORD not in tokenizer.get_vocab():
            raise refusal(name, f"has a {encoder.replace('text_encoder', 'tokenizer')} without a vocabulary")
    told, read = (
        sum(e.config.hidden_size for e in components.text_encoders.values()),
        components.unet.config.cross_attention_dim,
    )
    if told != read:
        raise refusal(name, f"has text encoders of width {told} and a UNet that reads {read}")


def refusal(name: str, reason: str) -> BaseModelError:
    """The error about ``BASE_MODEL`` ``name``, which ``reason`` (as the end of "it …") makes no base."""
    return BaseModelError(f"BASE_MODEL {name!r} {reason}; it must be {ACCEPTED}.")
