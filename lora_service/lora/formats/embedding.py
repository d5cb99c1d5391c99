"""Embedding files: only learned tokens, as textual inversion makes them.

    A1111, ComfyUI, SD 1.x and 2.x   ``emb_params`` (rows, width)
    A1111, ComfyUI, SDXL             ``clip_l`` (rows, 768), ``clip_g`` (rows, 1280)
    A1111's older files              ``string_to_param.*`` (rows, width)
    replicate/cog-sdxl               ``text_encoders_0`` and ``_1``, as clip_l and clip_g: tokens ``<s0>``, ``<s1>``, …
    diffusers                        a tensor named by the token itself, in brackets or not

The first three do not name the token: it is called by the file's name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from lora_service.errors import LoraFileError
from lora_service.lora.formats.stored_tokens import (
    ENCODER_BY_KEY,
    ENCODER_BY_TRAINED_KEY,
    Embeddings,
    add_rows,
    tokens_from_training,
    validated,
    word,
)
from lora_service.lora.safetensors_file import TensorFile
from lora_service.lora.safetensors_header import shortened
from lora_service.lora.weights import LoraWeights

_UNNAMED_KEYS = ("emb_params", "string_to_param.*", *ENCODER_BY_KEY)


def detects(keys: Collection[str], metadata: Mapping[str, str]) -> bool:
    """Return True if any key is one of an embedding file's or a token in brackets, or all are words."""
    known = any(key in _UNNAMED_KEYS or key in ENCODER_BY_TRAINED_KEY or _is_token(key) for key in keys)
    return known or (len(keys) > 0 and all(map(_is_word, keys)))


def read(file: TensorFile) -> LoraWeights:
    """Return tokens without any change of weights.

    Raises:
        LoraFileError: a key is none of this format (``unknown_key``), or a token cannot be used.
    """
    if all(key in ENCODER_BY_TRAINED_KEY for key in file.tensors):
        return LoraWeights({}, tokens_from_training(file.tensors), file.metadata, "embedding")
    embeddings: Embeddings = {}
    of_words = all(_is_word(key) or _is_token(key) for key in file.tensors)
    for key, tensor in file.tensors.items():
        if key in _UNNAMED_KEYS:
            add_rows(embeddings, word(file.stem), ENCODER_BY_KEY.get(key, "text_encoder"), tensor)
        elif of_words or _is_token(key):
            add_rows(embeddings, word(key), "text_encoder", tensor)
        else:
            raise LoraFileError(f"The key {shortened(key)!r} is none of an embedding file.", code="unknown_key")
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


def _is_word(key: str) -> bool:
    """Return True for a key that can be a token's name, and is no path of a module."""
    return key not in _UNNAMED_KEYS and key not in ENCODER_BY_TRAINED_KEY and not set(key) & set(".:")


def _is_token(key: str) -> bool:
    return key.startswith("<") and key.endswith(">")
