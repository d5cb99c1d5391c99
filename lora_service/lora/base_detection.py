"""Which base a LoRA or a model belongs to, told by the width of the text it listens to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lora_service.lora.weights import LoraWeights

Shape = tuple[int, ...]

_BASE_BY_TEXT_WIDTH = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}
_BASE_BY_STRING = {
    "sdxl": "Stable Diffusion XL",
    "stable-diffusion-xl": "Stable Diffusion XL",
    "sd_v1": "Stable Diffusion 1.x",
    "stable-diffusion-v1": "Stable Diffusion 1.x",
    "sd_v2": "Stable Diffusion 2.x",
    "stable-diffusion-v2": "Stable Diffusion 2.x",
}


def base_of_lora(weights: LoraWeights) -> str | None:
    """The base that a LoRA was made for, by its shapes, else by its header; None if neither tells."""
    shapes = {component: _shapes(weights, component) for component in weights.layers}
    by_shapes = _base(shapes.get("unet", ()), shapes.get("text_encoder", ()), "text_encoder_2" in weights.layers)
    if by_shapes is None and weights.embeddings:
        rows = next(iter(weights.embeddings.values()))
        by_shapes = _BASE_BY_TEXT_WIDTH[2048] if "text_encoder_2" in rows else _named(rows["text_encoder"].shape[-1])
    return by_shapes or _base_of_header(weights.metadata)


def base_of_model(unet: Iterable[tuple[str, Shape]], text_encoder: Iterable[tuple[str, Shape]]) -> str | None:
    """The base that a model is, from (module path, shape of the weight) of its parts."""
    return _base(unet, text_encoder, False)


def _shapes(weights: LoraWeights, component: str) -> Iterable[tuple[str, Shape]]:
    return [(path, layer.shape) for path, layer in weights.layers[component].items()]


def _base(
    unet: Iterable[tuple[str, Shape]], text_encoder: Iterable[tuple[str, Shape]], second_encoder: bool
) -> str | None:
    for path, shape in unet:
        if path.endswith(("attn2.to_k", "attn2.to_v")):
            return _named(shape[1])
    if second_encoder:
        return _BASE_BY_TEXT_WIDTH[2048]
    for path, shape in text_encoder:
        # SDXL's first text encoder is that of 1.x, so a width of 768 alone tells nothing.
        if path.endswith(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")) and shape[1] != 768:
            return _named(shape[1])
    return None


def _named(text_width: int) -> str:
    return _BASE_BY_TEXT_WIDTH.get(text_width, f"a base with a text width of {text_width}")


def _base_of_header(metadata: Mapping[str, str]) -> str | None:
    for key in ("ss_base_model_version", "modelspec.architecture"):
        text = metadata.get(key, "").lower()
        for start, base in _BASE_BY_STRING.items():
            if text.startswith(start):
                return base
    return None
