"""The models that make up a base, as every loader returns them, and the checks that they are whole and fit together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lora_service.errors import BaseModelError
from lora_service.models.families.family import Family
from lora_service.models.registry import ACCEPTED

INPAINTING_CHANNELS = 9
"""Input channels of a UNet that takes a mask and a masked picture's latents behind 4 channels of latents."""
_MODELS_BY_CHANNELS = {5: "is a depth-to-image model", 8: "is an instruction editing model (pix2pix)"}


@dataclass(frozen=True, eq=False)
class Components:
    """A base's models as loaded.

    Attributes:
        family: of the base.
        backbone: the UNet or transformer.
        vae: the VAE.
        text_encoders: text encoders by the names of diffusers' folders: ``text_encoder``, ``text_encoder_2`` …
        tokenizers: tokenizers by the names of their text encoders.
        scheduler_config: the base's own, as in diffusers' ``scheduler_config.json``.
        pipeline_config: that of diffusers' pipeline, such as ``force_zeros_for_empty_prompt``.
    """

    family: Family
    backbone: Any
    vae: Any
    text_encoders: Mapping[str, Any]
    tokenizers: Mapping[str, Any]
    scheduler_config: Mapping[str, Any]
    pipeline_config: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def from_pipeline(pipeline: Any, family: Family) -> Components:
        """Take the components of a base of ``family`` out of one of diffusers' pipelines."""
        suffixes = [end for end in ("", "_2", "_3") if getattr(pipeline, f"text_encoder{end}", None) is not None]
        return Components(
            family=family,
            backbone=getattr(pipeline, family.backbone),
            vae=pipeline.vae,
            text_encoders={f"text_encoder{end}": getattr(pipeline, f"text_encoder{end}") for end in suffixes},
            tokenizers={f"text_encoder{end}": getattr(pipeline, f"tokenizer{end}") for end in suffixes},
            scheduler_config=pipeline.scheduler.config,
            pipeline_config=pipeline.config,
        )


def check_components(name: str, components: Components) -> None:
    """Check that ``components`` have all their weights and fit together.

    The libraries load a model that lacks weights, and a tokenizer without a vocabulary, without an error.

    Raises:
        BaseModelError: weights or a vocabulary are missing, or the models do not fit together.
    """
    family = components.family
    models = {family.backbone: components.backbone, "vae": components.vae, **components.text_encoders}
    missing = (f"{part}.{key}" for part, model in models.items() for key, p in model.named_parameters() if p.is_meta)
    if first := next(missing, None):
        raise unusable(name, f"lacks weights, like {first}", code="incomplete_model")
    family.check(name, components)


def check_channels(name: str, channels: int, latent_channels: int = 4) -> None:
    """Check that a UNet of ``channels`` input channels takes the latents of a VAE, or is an inpainting UNet.

    Raises:
        BaseModelError: it is an editing or depth-to-image model, or of no known kind.
    """
    if channels not in (latent_channels, INPAINTING_CHANNELS):
        model = _MODELS_BY_CHANNELS.get(channels, "has a UNet of no known kind")
        raise unusable(name, f"{model} ({channels} input channels)")


def unusable(name: str, reason: str, *, code: str = "unsupported_model") -> BaseModelError:
    """Make the error for the base model ``name``; ``reason`` is the end of "it …"."""
    return BaseModelError(f"BASE_MODEL {name!r} {reason}; it must be {ACCEPTED}.", code=code, field="BASE_MODEL")
