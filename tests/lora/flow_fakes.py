"""Tiny random transformers of each family, and files for them under the original models' names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from lora_service.lora.flow.families import FAMILIES
from lora_service.lora.flow.names import TransformerFamily

BY_NAME = {family.name: family for family in FAMILIES}
NAMES = tuple(BY_NAME)

_ATTENTION = {"attention_head_dim": 8, "num_attention_heads": 2}
_FLUX = {"num_layers": 2, "num_single_layers": 2, "joint_attention_dim": 12, "in_channels": 4, **_ATTENTION}
_CONFIGS: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    "flux2-klein": (
        "Flux2Transformer2DModel",
        "Flux2KleinPipeline",
        {**_FLUX, "timestep_guidance_channels": 16, "axes_dims_rope": (2, 2, 2, 2)},
    ),
    "zimage": (
        "ZImageTransformer2DModel",
        "ZImagePipeline",
        {
            "in_channels": 4, "dim": 16, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2,
            "cap_feat_dim": 12, "axes_dims": [2, 2, 4], "axes_lens": [16, 8, 8],
        },
    ),
    "flux1": (
        "FluxTransformer2DModel",
        "FluxPipeline",
        {**_FLUX, "pooled_projection_dim": 10, "guidance_embeds": True, "axes_dims_rope": (2, 2, 4)},
    ),
    "chroma": (
        "ChromaTransformer2DModel",
        "ChromaPipeline",
        {
            **_FLUX, "axes_dims_rope": (2, 2, 4), "approximator_num_channels": 8, "approximator_hidden_dim": 14,
            "approximator_layers": 2,
        },
    ),
    "krea2": (
        "Krea2Transformer2DModel",
        "Krea2Pipeline",
        {
            "in_channels": 4, "num_layers": 2, "num_key_value_heads": 1, "intermediate_size": 20, "text_hidden_dim": 12,
            "timestep_embed_dim": 8, "num_text_layers": 2, "text_num_attention_heads": 2, "text_num_key_value_heads": 2,
            "text_intermediate_size": 18, "num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 1,
            "axes_dims_rope": (2, 2, 4), **_ATTENTION,
        },
    ),
    "qwen-image": (
        "QwenImageTransformer2DModel",
        "QwenImagePipeline",
        {"num_layers": 2, "in_channels": 4, "out_channels": 1, "joint_attention_dim": 12, "axes_dims_rope": (2, 2, 4),
         **_ATTENTION},
    ),
    "sd3": (
        "SD3Transformer2DModel",
        "StableDiffusion3Pipeline",
        {
            "sample_size": 8, "num_layers": 3, "joint_attention_dim": 12, "caption_projection_dim": 16,
            "pooled_projection_dim": 10, "in_channels": 4, "out_channels": 4, "pos_embed_max_size": 8,
            "qk_norm": "rms_norm", "dual_attention_layers": (0,), **_ATTENTION,
        },
    ),
}  # fmt: skip
FULL_SIZE: Mapping[str, dict[str, Any]] = {
    "flux2-klein": {
        "num_layers": 5, "num_single_layers": 20, "attention_head_dim": 128, "num_attention_heads": 24,
        "joint_attention_dim": 7680,
    },
    "flux1": {"guidance_embeds": True},
    "sd3": {
        "num_layers": 38, "attention_head_dim": 64, "num_attention_heads": 38, "joint_attention_dim": 4096,
        "caption_projection_dim": 2432, "pos_embed_max_size": 192, "qk_norm": "rms_norm",
    },
}  # fmt: skip
"""Where they differ from the defaults of diffusers' class."""


def small_transformer(name: str) -> nn.Module:
    """Make a family's random transformer; the same every time."""
    class_name, _, config = _CONFIGS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = getattr(diffusers, class_name)(**config).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.1)
    return model


def full_size_transformer(name: str) -> nn.Module:
    """Make a family's transformer as it was published, without memory for its weights."""
    with torch.device("meta"):
        model: nn.Module = getattr(diffusers, _CONFIGS[name][0])(**FULL_SIZE.get(name, {}))
    return model


def pipeline_of(name: str, transformer: nn.Module) -> Any:
    """Make diffusers' pipeline of a family with nothing but the transformer."""
    pipeline_class = getattr(diffusers, _CONFIGS[name][1])
    parameters = pipeline_class.__init__.__annotations__
    return pipeline_class(**{part: transformer if part == "transformer" else None for part in _components(parameters)})


def _components(parameters: Mapping[str, Any]) -> list[str]:
    settings = ("is_distilled", "return", "text_encoder_select_layers", "force_zeros_for_empty_prompt", "patch_size")
    return [part for part in parameters if part not in settings]


def weights_by_path(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of every linear layer's and convolution's weight."""
    return {
        path: module.weight.detach().clone()
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


@dataclass(frozen=True)
class Factors:
    """A random LoRA of one original module, as tools store it."""

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def delta(self) -> Tensor:
        return self.alpha / self.down.shape[0] * (self.up.flatten(1) @ self.down.flatten(1))


def original_loras(
    family: TransformerFamily,
    model: nn.Module,
    wanted: Callable[[str], bool] = lambda name: True,
    *,
    rank: int = 3,
    alpha: float = 6.0,
) -> dict[str, Factors]:
    """Return original module name -> factors, for every original of the family that the model has linear layers for."""
    generator = torch.Generator().manual_seed(1)
    shapes = {path: weight.shape for path, weight in weights_by_path(model).items()}
    sizes: dict[str, dict[str, int]] = {}
    columns: dict[str, int] = {}
    for path, shape in shapes.items():
        module = family.find_path(path)
        if module is not None and len(shape) == 2 and wanted(module.original):
            sizes.setdefault(module.original, {})[path] = shape[0]
            columns[module.original] = shape[1]
    return {
        name: Factors(
            torch.randn(rank, columns[name], generator=generator) * 0.3,
            torch.randn(sum(rows.values()), rank, generator=generator) * 0.3,
            alpha,
        )
        for name, rows in sizes.items()
    }
