"""Maps module names: other tools' flattened and original-model names <-> module paths of the diffusers model.

kohya joins a module's path with underscores (``down_blocks_0_attentions_0``), which loses where one name ends;
the names that hold an underscore themselves are listed here, so the path comes back without the model.
"""

from __future__ import annotations

import re
from functools import lru_cache

_COMPOUND_NAMES = frozenset({
    "down_blocks", "up_blocks", "mid_block", "transformer_blocks", "to_q", "to_k", "to_v", "to_out", "proj_in",
    "proj_out", "time_emb_proj", "conv_shortcut", "conv_in", "conv_out", "conv_norm_out", "time_embedding",
    "add_embedding", "class_embedding", "linear_1", "linear_2", "time_proj", "text_model", "self_attn", "q_proj",
    "k_proj", "v_proj", "out_proj", "token_embedding", "position_embedding", "final_layer_norm",
    "text_projection", "layer_norm1", "layer_norm2",
})  # fmt: skip
_LONGEST_COMPOUND = max(name.count("_") for name in _COMPOUND_NAMES) + 1

# The original model's blocks (https://github.com/Stability-AI/generative-models, openaimodel.py) hold two residual
# blocks per level going down and three going up, and number resampling layers as blocks of their own.
_BLOCKS_PER_LEVEL = 3
_RESNET_TO_DIFFUSERS = {
    "in_layers_0": "norm1",
    "in_layers_2": "conv1",
    "emb_layers_1": "time_emb_proj",
    "out_layers_0": "norm2",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
}
_LAYER_TO_DIFFUSERS = {
    "input_blocks_0_0": "conv_in",
    "time_embed_0": "time_embedding.linear_1",
    "time_embed_2": "time_embedding.linear_2",
    "label_emb_0_0": "add_embedding.linear_1",
    "label_emb_0_2": "add_embedding.linear_2",
    "out_0": "conv_norm_out",
    "out_2": "conv_out",
}
_ORIGINAL_PATH = re.compile(r"(?:input_blocks|output_blocks|middle_block|time_embed|label_emb|out)\.\d")
_RESNET_TO_ORIGINAL = {diffusers: original for original, diffusers in _RESNET_TO_DIFFUSERS.items()}
_LAYER_TO_ORIGINAL = {diffusers: original for original, diffusers in _LAYER_TO_DIFFUSERS.items()}


def flatten(path: str) -> str:
    """``down_blocks.0.attn1.to_q`` -> ``down_blocks_0_attn1_to_q``."""
    return path.replace(".", "_")


@lru_cache(maxsize=4096)  # each module's name comes with two or three tensors
def unflatten(name: str) -> str:
    """``down_blocks_0_attn1_to_q`` -> ``down_blocks.0.attn1.to_q``."""
    words = name.split("_")
    segments: list[str] = []
    position = 0
    while position < len(words):
        length = next(
            (
                count
                for count in range(_LONGEST_COMPOUND, 1, -1)
                if "_".join(words[position : position + count]) in _COMPOUND_NAMES
            ),
            1,
        )
        segments.append("_".join(words[position : position + length]))
        position += length
    return ".".join(segments)


def unflatten_unet(name: str) -> str:
    """Return the UNet's module path of a flattened name, in diffusers' or in the original model's block names."""
    if name in _LAYER_TO_DIFFUSERS:
        return _LAYER_TO_DIFFUSERS[name]
    if match := re.fullmatch(r"(input|output|middle)_blocks?_(\d{1,3})(?:_(\d))?_(.+)", name):
        path = _original_to_diffusers(match[1], int(match[2]), match[3], match[4])
        if path:
            return path
    return unflatten(name)


def original_to_path(path: str) -> str:
    """Return a UNet's module path; one in the original model's blocks (``input_blocks.4.1.…``) becomes diffusers'."""
    return unflatten_unet(flatten(path)) if _ORIGINAL_PATH.match(path) else path


def _original_to_diffusers(side: str, block_number: int, slot: str | None, layer: str) -> str | None:
    """Return the module path of a layer of an original block; ``slot`` is its position inside the block."""
    if side == "middle":
        layer = f"{slot}_{layer}" if slot else layer
        block = ("resnets.0", "attentions.0", "resnets.1")[block_number] if block_number < 3 else None
        return block and _layer_in_block(f"mid_block.{block}", layer)
    if slot is None:
        return None
    level, index = divmod(block_number - (side == "input"), _BLOCKS_PER_LEVEL)
    block = f"down_blocks.{level}" if side == "input" else f"up_blocks.{level}"
    if side == "input" and layer == "op":
        return f"{block}.downsamplers.0.conv"
    if side == "output" and layer == "conv" and slot != "0":
        return f"{block}.upsamplers.0.conv"
    return _layer_in_block(f"{block}.{'resnets' if slot == '0' else 'attentions'}.{index}", layer)


def _layer_in_block(block: str, layer: str) -> str:
    return f"{block}.{_RESNET_TO_DIFFUSERS.get(layer) or unflatten(layer)}"


def flatten_to_original(path: str) -> str | None:
    """Return an SDXL UNet module's flattened name in the original model's blocks; None if it has no such block."""
    if path in _LAYER_TO_ORIGINAL:
        return _LAYER_TO_ORIGINAL[path]
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", path):
        number = {"resnets0": 0, "attentions0": 1, "resnets1": 2}.get(match[1] + match[2])
        return None if number is None else f"middle_block_{number}_{_original_layer(match[3])}"
    if match := re.fullmatch(r"down_blocks\.(\d)\.downsamplers\.0\.conv", path):
        return f"input_blocks_{_BLOCKS_PER_LEVEL * (int(match[1]) + 1)}_0_op"
    if match := re.fullmatch(r"up_blocks\.(\d)\.upsamplers\.0\.conv", path):
        # Behind a residual block and its attention: both upsampled levels of XL have attention.
        return f"output_blocks_{_BLOCKS_PER_LEVEL * (int(match[1]) + 1) - 1}_2_conv"
    if match := re.fullmatch(r"(down|up)_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.+)", path):
        level, index = int(match[2]), int(match[4])
        is_down = match[1] == "down"
        if index >= _BLOCKS_PER_LEVEL - is_down:
            return None
        number = _BLOCKS_PER_LEVEL * level + index + is_down
        slot = 0 if match[3] == "resnets" else 1
        return f"{'input' if is_down else 'output'}_blocks_{number}_{slot}_{_original_layer(match[5])}"
    return None


def _original_layer(layer: str) -> str:
    return _RESNET_TO_ORIGINAL.get(layer) or flatten(layer)


def strip_text_model(path: str) -> str:
    """Return a module path without the ``text_model.`` level of text encoders, which transformers 5 dropped."""
    return path.removeprefix("text_model.")


def component_by_path(path: str) -> str | None:
    """Return the component that a module path without a component prefix belongs to; None if it is ambiguous."""
    if re.match(
        r"(down_blocks|up_blocks|mid_block|time_embedding|add_embedding|conv_in|conv_out|conv_norm_out)\b", path
    ):
        return "unet"
    if re.match(r"(text_model\.)?encoder\.layers\.", path):
        return "text_encoder"
    return None
