"""The base model that a LoRA or a model belongs to, by the width of its cross-attention, else by the header; that of a
transformer by :mod:`lora_service.lora.flow.detection`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from lora_service.lora.flow.detection import candidates, family_of_title, lora_candidates
from lora_service.lora.flow.families import FAMILIES, SD3
from lora_service.lora.weights import LoraWeights

Shape = tuple[int, ...]

SD1, SD2, SDXL = "Stable Diffusion 1.x", "Stable Diffusion 2.x", "Stable Diffusion XL"
_BASE_BY_CROSS_ATTENTION_DIM = {
    768: SD1,
    1024: SD2,
    2048: SDXL,
}
NAMED_BASES = frozenset(_BASE_BY_CROSS_ATTENTION_DIM.values()) | {
    title for family in FAMILIES for title in (family.title, *(version.title for version in family.versions))
}
_BASE_BY_HEADER_PREFIX = {
    "sdxl": SDXL,
    "stable-diffusion-xl": SDXL,
    "sd_v1": SD1,
    "stable-diffusion-v1": SD1,
    "sd_v2": SD2,
    "stable-diffusion-v2": SD2,
    "sd3": SD3.title,
    "stable-diffusion-v3": SD3.title,
}
_TEXT_PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_LATER_TRANSFORMER_BLOCK = re.compile(r"\.transformer_blocks\.[1-9]")
"""Part of a module path that only XL's UNet has: those of 1.x and 2.x hold one transformer block per attention."""


def detect_lora_base(weights: LoraWeights) -> str | None:
    """Return the name of the base that a LoRA was made for; None if neither shapes nor header identify it.

    Where the modules can be those of several transformers, it is the likeliest.
    """
    if found := lora_candidates(weights):
        return found[0].title
    told = _from_header(weights.metadata)
    if told == SD3.title and "unet" not in weights.layers:  # tokens and layers of its text encoders are as XL's
        return told
    shapes = {component: _shapes(weights, component) for component in weights.layers}
    base = _from_shapes(shapes.get("unet", ()), shapes.get("text_encoder", ()), "text_encoder_2" in weights.layers)
    if base is None and weights.embeddings:
        rows = next(iter(weights.embeddings.values()))
        base = _base_name(2048 if "text_encoder_2" in rows else rows["text_encoder"].shape[-1])
    return base or told


def can_be_for(weights: LoraWeights, base: str) -> bool:
    """Return False if a LoRA was made for another base than this one, as :func:`detect_lora_base` names it.

    Sizes of one family count as one base: their shapes tell them apart, module by module.
    """
    found, family = lora_candidates(weights), family_of_title(base)
    if found or family:
        return any(candidate.family is family for candidate in found)
    return detect_lora_base(weights) in (None, base)


def likelier_base(weights: LoraWeights, base: str | None) -> str | None:
    """Return the base of another family that a LoRA is likelier for than for ``base``, which it can be for too."""
    found = lora_candidates(weights)
    if not found or base is None or found[0].family is family_of_title(base):
        return None
    return found[0].title


def has_sdxl_modules(weights: LoraWeights) -> bool:
    """Return True for a LoRA of Stable Diffusion XL, or of any base built like it, whatever its widths."""
    return (
        "text_encoder_2" in weights.layers
        or any("text_encoder_2" in rows for rows in weights.embeddings.values())
        or any(_LATER_TRANSFORMER_BLOCK.search(path) for path in weights.layers.get("unet", ()))
        or detect_lora_base(weights) == SDXL
    )


def detect_model_base(
    unet: Iterable[tuple[str, Shape]],
    text_encoder: Iterable[tuple[str, Shape]],
    transformer: Iterable[tuple[str, Shape]] = (),
) -> str | None:
    """Return the name of a model's base from the (module path, shape of the weight) pairs of its components."""
    if found := candidates(dict(transformer)):
        return found[0].title
    return _from_shapes(unet, text_encoder, False)


def _shapes(weights: LoraWeights, component: str) -> Iterable[tuple[str, Shape]]:
    return [(path, layer.shape) for path, layer in weights.layers[component].items()]


def _from_shapes(
    unet: Iterable[tuple[str, Shape]], text_encoder: Iterable[tuple[str, Shape]], has_second_encoder: bool
) -> str | None:
    is_deep = False
    for path, shape in unet:
        if path.endswith(("attn2.to_k", "attn2.to_v")) and len(shape) > 1:
            return _base_name(shape[1])
        is_deep = is_deep or _LATER_TRANSFORMER_BLOCK.search(path) is not None
    if has_second_encoder or is_deep:
        return SDXL
    for path, shape in text_encoder:
        # SDXL's first text encoder is that of 1.x, so a width of 768 alone identifies neither.
        if path.endswith(_TEXT_PROJECTIONS) and len(shape) > 1 and shape[1] != 768:
            return _base_name(shape[1])
    return None


def _base_name(cross_attention_dim: int) -> str:
    unknown = f"a base with a cross_attention_dim of {cross_attention_dim}"
    return _BASE_BY_CROSS_ATTENTION_DIM.get(cross_attention_dim, unknown)


def _from_header(metadata: Mapping[str, str]) -> str | None:
    for key in ("ss_base_model_version", "modelspec.architecture"):
        value = metadata.get(key, "").lower()
        for prefix, base in _BASE_BY_HEADER_PREFIX.items():
            if value.startswith(prefix):
                return base
    return None
