"""Embedding files: only learned tokens, as textual inversion makes them.

    A1111, ComfyUI, SD 1.x and 2.x   ``emb_params`` (rows, width)
    A1111, ComfyUI, SDXL             ``clip_l`` (rows, 768), ``clip_g`` (rows, 1280)
    diffusers                        a tensor named by the token itself, in brackets

The first two do not name the token: it is called by the file's name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from lora_service.errors import LoraFileError
from lora_service.lora.formats.stored_tokens import ENCODER_BY_KEY, Embeddings, add_rows, validated
from lora_service.lora.safetensors_file import TensorFile
from lora_service.lora.safetensors_header import shortened
from lora_service.lora.weights import LoraWeights

_UNNAMED_KEYS = ("emb_params", *ENCODER_BY_KEY)


def detects(file: TensorFile) -> bool:
    """Return True if any key is one of an embedding file's, or a token in brackets."""
    return any(key in _UNNAMED_KEYS or _is_token(key) for key in file.tensors)


def read(file: TensorFile) -> LoraWeights:
    """Return tokens without any change of weights.

    Raises:
        LoraFileError: a key is none of this format (``unknown_key``), or a token cannot be used.
    """
    embeddings: Embeddings = {}
    name_of_file = re.sub(r"\s+", "_", file.stem.strip())
    for key, tensor in file.tensors.items():
        if key not in _UNNAMED_KEYS and not _is_token(key):
            raise LoraFileError(f"The key {shortened(key)!r} is none of an embedding file.", code="unknown_key")
        name = key if _is_token(key) else name_of_file
        add_rows(embeddings, name, ENCODER_BY_KEY.get(key, "text_encoder"), tensor)
    return LoraWeights({}, validated(embeddings), file.metadata, "embedding")


def write(weights: LoraWeights) -> TensorFile:
    """Return all tokens as the rows of one, in their order; the file's name is then its name.

    Raises:
        LoraFileError: there are no tokens (``no_tokens``).
    """
    if not weights.embeddings:
        raise LoraFileError("The LoRA has no learned tokens, so there is no embedding to write.", code="no_tokens")
    encoders = {encoder for rows in weights.embeddings.values() for encoder in rows}
    if encoders == {"text_encoder"}:
        return TensorFile({"emb_params": _stacked(weights.embeddings, "text_encoder")})
    return TensorFile(
        {key: _stacked(weights.embeddings, encoder) for key, encoder in ENCODER_BY_KEY.items() if encoder in encoders}
    )


def _stacked(embeddings: Mapping[str, Mapping[str, Tensor]], encoder: str) -> Tensor:
    return torch.stack([rows[encoder] for rows in embeddings.values() if encoder in rows])


def _is_token(key: str) -> bool:
    return key.startswith("<") and key.endswith(">")
