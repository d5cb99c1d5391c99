"""Learned tokens in files: our header string, A1111's bundled embeddings, embedding files."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy
import torch
from torch import Tensor

from lora_service.errors import LoraFileError
from lora_service.lora.safetensors_header import shortened

TOKENS_KEY = "lora_service.tokens"
MAX_TOKENS = 256
MAX_NAME_LENGTH = 64

ENCODER_BY_KEY = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
Embeddings = dict[str, dict[str, Tensor]]


def header_tokens(embeddings: Mapping[str, Mapping[str, Tensor]]) -> dict[str, str]:
    """The header string of learned tokens: JSON, name -> encoder -> base64 of fp16 little-endian and the shape."""
    if not embeddings:
        return {}
    content = {
        name: {encoder: {"data": _encode(row), "shape": list(row.shape)} for encoder, row in sorted(by_encoder.items())}
        for name, by_encoder in embeddings.items()
    }
    return {TOKENS_KEY: json.dumps(content, ensure_ascii=False)}


def _encode(row: Tensor) -> str:
    values = row.detach().to("cpu", torch.float16).contiguous()
    return base64.b64encode(values.numpy().astype("<f2").tobytes()).decode("ascii")


def read_header_tokens(metadata: Mapping[str, str]) -> Embeddings:
    """The tokens of our header string; empty without it.

    Raises:
        LoraFileError: the string is there and does not hold what it should.
    """
    text = metadata.get(TOKENS_KEY)
    if text is None:
        return {}
    try:
        content = json.loads(text)
        embeddings = {
            str(name): {str(encoder): _decode(row) for encoder, row in by_encoder.items()}
            for name, by_encoder in content.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error) as error:
        raise LoraFileError(
            f"The LoRA's header string {TOKENS_KEY!r} ({shortened(text)!r}) does not hold tokens; "
            "write the file again with `lora-service convert`."
        ) from error
    return checked(embeddings)


def _decode(row: Mapping[str, Any]) -> Tensor:
    raw, shape = base64.b64decode(row["data"], validate=True), [int(size) for size in row["shape"]]
    if len(shape) != 1 or len(raw) != 2 * math.prod(shape) or not raw:
        raise ValueError("shape")
    return torch.from_numpy(numpy.frombuffer(raw, dtype="<f2").astype("float16"))


def read_bundled(tensors: Mapping[str, Tensor]) -> Embeddings:
    """Tokens of A1111's ``bundle_emb.`` keys: ``NAME.string_to_param.*``, ``.emb_params``, ``.clip_l``, ``.clip_g``."""
    embeddings: Embeddings = {}
    for key, tensor in tensors.items():
        name, _, part = key.partition(".")
        if part not in ("string_to_param.*", "emb_params", *ENCODER_BY_KEY):
            raise LoraFileError(f"The LoRA's key {shortened('bundle_emb.' + key)!r} is no embedding that is known.")
        add_rows(embeddings, name, ENCODER_BY_KEY.get(part, "text_encoder"), tensor)
    return checked(embeddings)


def add_rows(embeddings: Embeddings, name: str, encoder: str, rows: Tensor) -> None:
    """Adds a learned word of one or more rows: ``name``, ``name_1``, ``name_2``, … as diffusers names them."""
    if rows.dim() not in (1, 2) or rows.numel() == 0 or (rows.dim() == 2 and len(rows) > MAX_TOKENS):
        raise LoraFileError(
            f"The embedding {shortened(name)!r} has the shape {tuple(rows.shape)}; it must be (rows, width), "
            f"with at most {MAX_TOKENS} rows."
        )
    for index, row in enumerate(rows.reshape(-1, rows.shape[-1])):
        by_encoder = embeddings.setdefault(f"{name}_{index}" if index else name, {})
        if encoder in by_encoder:
            raise LoraFileError(f"The LoRA has two embeddings {shortened(name)!r} for the {encoder}; keep one.")
        by_encoder[encoder] = row


def checked(embeddings: Embeddings) -> Embeddings:
    """The tokens, if a tokenizer can take their names."""
    if len(embeddings) > MAX_TOKENS:
        raise LoraFileError(f"The LoRA has {len(embeddings)} tokens; at most {MAX_TOKENS} are read.")
    for name, by_encoder in embeddings.items():
        if not name or len(name) > MAX_NAME_LENGTH or any(c.isspace() or not c.isprintable() for c in name):
            raise LoraFileError(
                f"The LoRA's token {shortened(name)!r} cannot be a word of a prompt; "
                f"it must have 1 to {MAX_NAME_LENGTH} printable characters without spaces."
            )
        if not by_encoder or not set(by_encoder) <= {"text_encoder", "text_encoder_2"}:
            raise LoraFileError(f"The LoRA's token {name!r} has no row for a text encoder that is known.")
        if not all(row.isfinite().all() for row in by_encoder.values()):
            raise LoraFileError(f"The LoRA's token {name!r} holds NaN or infinite values; the training went wrong.")
    for encoder in ("text_encoder", "text_encoder_2"):
        widths = {row.shape for by_encoder in embeddings.values() if (row := by_encoder.get(encoder)) is not None}
        if len(widths) > 1:
            raise LoraFileError(
                f"The LoRA's tokens are of different widths for the {encoder}; they are not of one base."
            )
    return embeddings
