"""Embedding files: only learned words, as textual inversion makes them.

    A1111, ComfyUI, SD 1.x and 2.x   ``emb_params`` (rows, width)
    A1111, ComfyUI, SDXL             ``clip_l`` (rows, 768), ``clip_g`` (rows, 1280)
    diffusers                        a tensor named by the word itself, in brackets

The first two name no word: the file's own name is the word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from lora_service.errors import LoraFileError
from lora_service.lora.content import FileContent
from lora_service.lora.formats.stored_tokens import ENCODER_BY_KEY, Embeddings, add_rows, checked
from lora_service.lora.safetensors_header import shortened
from lora_service.lora.weights import LoraWeights

_UNNAMED = ("emb_params", *ENCODER_BY_KEY)


def detects(content: FileContent) -> bool:
    """Whether any key is one of an embedding file's, or a word in brackets."""
    return any(key in _UNNAMED or _is_word(key) for key in content.tensors)


def read(content: FileContent) -> LoraWeights:
    """Tokens without any change of weights."""
    embeddings: Embeddings = {}
    word = re.sub(r"\s+", "_", content.name.strip())
    for key, tensor in content.tensors.items():
        if key not in _UNNAMED and not _is_word(key):
            raise LoraFileError(f"The key {shortened(key)!r} is none of an embedding file.")
        name = key if _is_word(key) else word
        add_rows(embeddings, name, ENCODER_BY_KEY.get(key, "text_encoder"), tensor)
    return LoraWeights({}, checked(embeddings), content.metadata, "embedding")


def write(weights: LoraWeights) -> FileContent:
    """All tokens as the rows of one word, in their order; the file's name is then that word.

    Raises:
        LoraFileError: there are no tokens.
    """
    if not weights.embeddings:
        raise LoraFileError("The LoRA has no learned tokens, so there is no embedding to write.")
    encoders = {encoder for rows in weights.embeddings.values() for encoder in rows}
    if encoders == {"text_encoder"}:
        return FileContent({"emb_params": _stacked(weights.embeddings, "text_encoder")})
    return FileContent(
        {key: _stacked(weights.embeddings, encoder) for key, encoder in ENCODER_BY_KEY.items() if encoder in encoders}
    )


def _stacked(embeddings: Mapping[str, Mapping[str, Tensor]], encoder: str) -> Tensor:
    return torch.stack([rows[encoder] for rows in embeddings.values() if encoder in rows])


def _is_word(key: str) -> bool:
    return key.startswith("<") and key.endswith(">")
