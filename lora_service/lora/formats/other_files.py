"""Files that people take for a LoRA, recognised by their keys: a checkpoint, a VAE, a ControlNet …"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class FileKind:
    """A kind of file that is no LoRA.

    Args:
        code: of the error that refuses it.
        description: completes the sentence "It is … and no LoRA".
        key: a regular expression that one of its keys begins with.
    """

    code: str
    description: str
    key: str


KINDS = (
    FileKind("controlnet", "a ControlNet", r"control_model\.|controlnet_|(model\.)?input_hint_block\.|lllite_"),
    FileKind("t2i_adapter", "a T2I adapter", r"(adapter\.)?body\.\d|adapter\.conv_in\."),
    FileKind("ip_adapter", "an IP-Adapter", r"ip_adapter\.|image_proj\."),
    FileKind(
        "checkpoint",
        "a whole checkpoint; set it as BASE_MODEL, or give the LoRA that was made from it,",
        r"model\.diffusion_model\.|cond_stage_model\.|conditioner\.embedders\.",
    ),
    FileKind("vae", "a VAE", r"first_stage_model\.|(post_)?quant_conv\.|(encoder|decoder)\.(down|up|mid|conv_in)\b"),
    FileKind("vae", "a VAE", r"(encoder|decoder)\.(down_blocks|up_blocks|mid_block)\."),
    FileKind("unet", "the UNet of a base model", r"(unet\.)?(down_blocks|up_blocks|mid_block|conv_in)\."),
    FileKind(
        "text_encoder", "the text encoder of a base model", r"(text_encoder\.)?(text_model\.)?(encoder|embeddings)\."
    ),
    FileKind("other_model", "a model of another architecture", r"(double|single|joint)_blocks\.|transformer\.|t5xxl"),
)
"""Asked in this order: a ControlNet has blocks of a UNet too."""


def kind_of(keys: Iterable[str]) -> FileKind | None:
    """Return the kind of a file with these keys; None if it is unknown."""
    names = list(keys)
    for kind in KINDS:
        if any(map(re.compile(kind.key).match, names)):
            return kind
    return None
