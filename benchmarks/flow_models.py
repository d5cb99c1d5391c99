"""Full-size bases of flow matching without values, on the meta device: for counts of memory and of what a LoRA matches.

The configurations are those of the published models, as far as the classes' own defaults are not.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLModel,
    T5Config,
    T5EncoderModel,
)

from benchmarks.random_models import small_tokenizer
from lora_service.models.components import Components
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.families.flow import FlowFamily
from lora_service.models.registry import FAMILIES, REGISTRY

META = torch.device("meta")
_KLEIN = {
    "in_channels": 128,
    "num_layers": 5,
    "num_single_layers": 20,
    "num_attention_heads": 24,
    "joint_attention_dim": 7680,
    "guidance_embeds": False,
}
_FLUX_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
_FLUX = {"guidance_embeds": True}
_SD35_LARGE = {
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "pos_embed_max_size": 192,
    "qk_norm": "rms_norm",
}
_SD35_MEDIUM = {
    "num_layers": 24,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 384,
    "qk_norm": "rms_norm",
    "dual_attention_layers": tuple(range(13)),
}
_MODELS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "klein": ("Flux2Transformer2DModel", _KLEIN, "AutoencoderKLFlux2", {}),
    "zimage": ("ZImageTransformer2DModel", {}, "AutoencoderKL", _FLUX_VAE),
    "krea2": ("Krea2Transformer2DModel", {}, "AutoencoderKLQwenImage", {}),
    "chroma": ("ChromaTransformer2DModel", {}, "AutoencoderKL", _FLUX_VAE),
    "flux-dev": ("FluxTransformer2DModel", _FLUX, "AutoencoderKL", _FLUX_VAE),
    "qwen-image": ("QwenImageTransformer2DModel", {}, "AutoencoderKLQwenImage", {}),
    "sd35-medium": ("SD3Transformer2DModel", _SD35_MEDIUM, "AutoencoderKL", _FLUX_VAE),
    "sd35-large": ("SD3Transformer2DModel", _SD35_LARGE, "AutoencoderKL", _FLUX_VAE),
}
"""Short name of the base -> class and configuration of the transformer and of the VAE."""
_T5_XXL = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
_CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "projection_dim": 768}
_CLIP_BIGG = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}
_QWEN3_4B = {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
}
_QWEN25_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
}
BARE = tuple(_MODELS)
"""The bases that are here, by their short names."""


def bare_transformer(name: str) -> nn.Module:
    """Return a transformer: 3.9 billion weights for ``klein``, 6.2 billion for ``zimage``."""
    class_name, config, _, _ = _MODELS[name]
    with META:
        transformer: nn.Module = getattr(diffusers, class_name)(**config)
    return transformer


def bare_base(name: str, dtype: torch.dtype = torch.bfloat16, *, quantization: str = "none") -> DiffusionBase:
    """Return a whole base; with ``quantization`` ``nf4`` its transformer's linear layers hold half a byte a weight."""
    _, _, vae_class, vae_config = _MODELS[name]
    family = next(each for each in FAMILIES if name in each.bases)
    assert isinstance(family, FlowFamily)
    with META:
        vae = getattr(diffusers, vae_class)(**vae_config)
        made = _text_encoders(name)
    models = [nn.Module.to(model, dtype) for model in (bare_transformer(name), vae)]
    encoders = {part: nn.Module.to(encoder, dtype) for part, encoder in made.items()}
    if quantization == "nf4":
        _pack(models[0], family.kept)
    tokenizers = dict.fromkeys(encoders, small_tokenizer())
    text = family.text_encoders(Components(family, models[0], models[1], encoders, tokenizers, {}))
    return DiffusionBase(name, family, models[0], models[1], text, {}, REGISTRY[name].defaults, META, dtype)


def _pack(model: nn.Module, kept: tuple[str, ...]) -> None:
    for path, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and path.split(".")[0] not in kept:
            packed = torch.empty(layer.weight.numel() // 2, dtype=torch.uint8, device=META)
            layer.weight = nn.Parameter(packed, requires_grad=False)


def _text_encoders(name: str) -> dict[str, nn.Module]:
    if name in ("klein", "zimage"):
        return {"text_encoder": Qwen3Model(Qwen3Config(**_QWEN3_4B))}
    if name == "krea2":
        return {"text_encoder": Qwen3VLModel(Qwen3VLConfig(text_config=_QWEN3_4B))}
    if name == "qwen-image":
        config = Qwen2_5_VLConfig(text_config=_QWEN25_7B, vision_config={"out_hidden_size": 3584})
        return {"text_encoder": Qwen2_5_VLForConditionalGeneration(config)}
    t5 = T5EncoderModel(T5Config(**_T5_XXL, feed_forward_proj="gated-gelu"))
    if name == "chroma":
        return {"text_encoder": t5}
    if name.startswith("sd35"):
        clips = (CLIPTextModelWithProjection(CLIPTextConfig(**config)) for config in (_CLIP_L, _CLIP_BIGG))
        return dict(zip(("text_encoder", "text_encoder_2", "text_encoder_3"), (*clips, t5), strict=True))
    return {"text_encoder": CLIPTextModel(CLIPTextConfig(hidden_size=768)), "text_encoder_2": t5}
