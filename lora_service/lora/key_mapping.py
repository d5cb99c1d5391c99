"""Names of modules: other tools' flattened and original-model names <-> paths of the diffusers model.

kohya joins a module's path with underscores (``down_blocks_0_attentions_0``), which loses where one name ends;
here the names that hold an underscore themselves are known, so the path comes back without the model.
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
_PER_LEVEL = 3
_RESNET_PARTS = {
    "in_layers_0": "norm1",
    "in_layers_2": "conv1",
    "emb_layers_1": "time_emb_proj",
    "out_layers_0": "norm2",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
}
_WHOLE_NAMES = {
    "input_blocks_0_0": "conv_in",
    "time_embed_0": "time_embedding.linear_1",
    "time_embed_2": "time_embedding.linear_2",
    "label_emb_0_0": "add_embedding.linear_1",
    "label_emb_0_2": "add_embedding.linear_2",
    "out_0": "conv_norm_out",
    "out_2": "conv_out",
}
_ORIGINAL_RESNET_PARTS = {ours: theirs for theirs, ours in _RESNET_PARTS.items()}
_ORIGINAL_WHOLE_NAMES = {ours: theirs for theirs, ours in _WHOLE_NAMES.items()}


def flatten(path: str) -> str:
    """``down_blocks.0.attn1.to_q`` -> ``down_blocks_0_attn1_to_q``."""
    return path.replace(".", "_")


@lru_cache(maxsize=4096)  # each module's name comes with two or three parts
def unflatten(name: str) -> str:
    """``down_blocks_0_attn1_to_q`` -> ``down_blocks.0.attn1.to_q``."""
    words = name.split("_")
    parts: list[str] = []
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
        parts.append("_".join(words[position : position + length]))
        position += length
    return ".".join(parts)


def unet_path(name: str) -> str:
    """The UNet's module path of a flattened name, in diffusers' or in the original model's block names."""
    if name in _WHOLE_NAMES:
        return _WHOLE_NAMES[name]
    if match := re.fullmatch(r"(input|output|middle)_blocks?_(\d{1,3})(?:_(\d))?_(.+)", name):
        path = _from_original(match[1], int(match[2]), match[3], match[4])
        if path:
            return path
    return unflatten(name)


def _from_original(group: str, number: int, slot: str | None, rest: str) -> str | None:
    if group == "middle":
        rest = f"{slot}_{rest}" if slot else rest
        block = ("resnets.0", "attentions.0", "resnets.1")[number] if number < 3 else None
        return block and _inside_block(f"mid_block.{block}", rest)
    if slot is None:
        return None
    level, index = divmod(number - 1, _PER_LEVEL) if group == "input" else divmod(number, _PER_LEVEL)
    block = f"down_blocks.{level}" if group == "input" else f"up_blocks.{level}"
    if group == "input" and rest == "op":
        return f"{block}.downsamplers.0.conv"
    if group == "output" and rest == "conv" and slot != "0":
        return f"{block}.upsamplers.0.conv"
    return _inside_block(f"{block}.{'resnets' if slot == '0' else 'attentions'}.{index}", rest)


def _inside_block(block: str, rest: str) -> str:
    return f"{block}.{_RESNET_PARTS.get(rest) or unflatten(rest)}"


def original_name(path: str) -> str | None:
    """The flattened name of a UNet module in the original model's blocks; None if that model has no such block."""
    if path in _ORIGINAL_WHOLE_NAMES:
        return _ORIGINAL_WHOLE_NAMES[path]
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", path):
        number = {"resnets0": 0, "attentions0": 1, "resnets1": 2}.get(match[1] + match[2])
        return None if number is None else f"middle_block_{number}_{_original_part(match[3])}"
    if match := re.fullmatch(r"down_blocks\.(\d)\.downsamplers\.0\.conv", path):
        return f"input_blocks_{_PER_LEVEL * (int(match[1]) + 1)}_0_op"
    if match := re.fullmatch(r"(down|up)_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.+)", path):
        level, index = int(match[2]), int(match[4])
        going_down = match[1] == "down"
        if index >= _PER_LEVEL - going_down:
            return None
        number = _PER_LEVEL * level + index + going_down
        slot = 0 if match[3] == "resnets" else 1
        return f"{'input' if going_down else 'output'}_blocks_{number}_{slot}_{_original_part(match[5])}"
    return None


def _original_part(rest: str) -> str:
    return _ORIGINAL_RESNET_PARTS.get(rest) or flatten(rest)


def canonical(path: str) -> str:
    """A text encoder's module path without the ``text_model.`` level, which transformers 5 dropped."""
    return path.removeprefix("text_model.")


def component_of(path: str) -> str | None:
    """The component that a module path without a prefix belongs to, if its first names tell."""
    if re.match(r"(down_blocks|up_blocks|mid_block|time_embedding|add_embedding|conv_in|conv_out)\b", path):
        return "unet"
    if re.match(r"(text_model\.)?encoder\.layers\.", path):
        return "text_encoder"
    return None
