"""Renames a base's weights to the keys of original Stable Diffusion checkpoints, as single-file models have them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_PER_LEVEL = 3  # two residual blocks and a resampling going down, three residual blocks going up

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_WHOLE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def checkpoint(parts: Any, family: str) -> dict[str, Tensor]:
    """Return the weights of ``parts`` (:class:`lora_service.models.components.Components`) as one checkpoint."""
    encoders = {name: encoder.state_dict() for name, encoder in parts.text_encoders.items()}
    text = {
        "sd1": lambda: _clip(encoders["text_encoder"], "cond_stage_model.transformer."),
        "sd2": lambda: _open_clip(encoders["text_encoder"], "cond_stage_model.model."),
        "sdxl": lambda: {
            **_clip(encoders["text_encoder"], "conditioner.embedders.0.transformer."),
            **_open_clip(encoders["text_encoder_2"], "conditioner.embedders.1.model."),
        },
    }[family]()
    return {**unet(parts.backbone.state_dict()), **_vae(parts.vae.state_dict()), **text}


def unet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a UNet's weights under their original keys."""
    with_attention = {int(m[1]) for key in state if (m := re.match(r"up_blocks\.(\d)\.attentions", key))}
    return {f"model.diffusion_model.{_unet_key(key, with_attention)}": tensor for key, tensor in state.items()}


def _unet_key(key: str, with_attention: set[int]) -> str:
    module, _, kind = key.rpartition(".")
    if module in _UNET_WHOLE:
        return f"{_UNET_WHOLE[module]}.{kind}"
    if match := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", key):
        number = {"resnets0": 0, "attentions0": 1, "resnets1": 2}[match[1] + match[2]]
        return f"middle_block.{number}.{_inside(match[1], match[3])}"
    match = re.match(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.+)", key)
    assert match, key
    direction, level, group, index, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    if group == "downsamplers":
        return f"input_blocks.{_PER_LEVEL * (level + 1)}.0.op.{kind}"
    if group == "upsamplers":
        slot = 2 if level in with_attention else 1
        return f"output_blocks.{_PER_LEVEL * level + _PER_LEVEL - 1}.{slot}.conv.{kind}"
    number = _PER_LEVEL * level + index + (direction == "down")
    side, slot = {"down": "input", "up": "output"}[direction], 0 if group == "resnets" else 1
    return f"{side}_blocks.{number}.{slot}.{_inside(group, rest)}"


def _inside(group: str, rest: str) -> str:
    if group == "attentions":
        return rest
    name, _, kind = rest.rpartition(".")
    return f"{_RESNET[name]}.{kind}"


def _vae(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    levels = 1 + max(int(m[1]) for key in state if (m := re.match(r"decoder\.up_blocks\.(\d)", key)))
    return {f"first_stage_model.{_vae_key(key, levels)}": _as_kernel(key, tensor) for key, tensor in state.items()}


def _vae_key(key: str, levels: int) -> str:
    key = re.sub(r"mid_block\.attentions\.0\.(group_norm|to_q|to_k|to_v|to_out\.0)", _vae_attention, key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    key = re.sub(r"encoder\.down_blocks\.", "encoder.down.", key)
    key = re.sub(r"decoder\.up_blocks\.(\d)", lambda m: f"decoder.up.{levels - 1 - int(m[1])}", key)
    key = (
        key.replace(".resnets.", ".block.")
        .replace("conv_shortcut", "nin_shortcut")
        .replace("conv_norm_out", "norm_out")
    )
    return key.replace("downsamplers.0.", "downsample.").replace("upsamplers.0.", "upsample.")


def _vae_attention(match: re.Match[str]) -> str:
    return f"mid.attn_1.{_VAE_ATTENTION[match[1]]}"


def _as_kernel(key: str, tensor: Tensor) -> Tensor:
    """Return a VAE's attention weight as a 1 × 1 convolution's, which the original has in its place."""
    return tensor[:, :, None, None] if "attentions" in key and tensor.dim() == 2 else tensor


def _clip(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}text_model.{key.removeprefix('text_model.')}": tensor for key, tensor in state.items()}


def _open_clip(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    by_key = {key.removeprefix("text_model."): tensor for key, tensor in state.items()}
    renamed = {
        "token_embedding.weight": by_key["embeddings.token_embedding.weight"],
        "positional_embedding": by_key["embeddings.position_embedding.weight"],
        "ln_final.weight": by_key["final_layer_norm.weight"],
        "ln_final.bias": by_key["final_layer_norm.bias"],
    }
    if "text_projection.weight" in by_key:
        renamed["text_projection"] = by_key["text_projection.weight"].T.contiguous()
    layers = {match[1] for key in by_key if (match := re.match(r"encoder\.layers\.(\d+)\.", key))}
    for layer in layers:
        old, new = f"encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            joined = [by_key[f"{old}self_attn.{name}.{kind}"] for name in ("q_proj", "k_proj", "v_proj")]
            renamed[f"{new}attn.in_proj_{kind}"] = torch.cat(joined)
            for name, original_name in _OPEN_CLIP.items():
                renamed[f"{new}{original_name}.{kind}"] = by_key[f"{old}{name}.{kind}"]
    return {prefix + key: tensor.clone() for key, tensor in renamed.items()}
