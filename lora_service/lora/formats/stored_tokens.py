"""Learned tokens as files store them: our header string, A1111's bundled embeddings, rows of embedding files."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy
import torch
from torch import Tensor

from lora_service.errors import LoraFileError
from lora_service.lora.header_facts import TOKENS_KEY
from lora_service.lora.safetensors_header import shortened

MAX_TOKENS = 256
MAX_NAME_LENGTH = 64
ENCODER_BY_KEY = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
"""Key of an embedding file -> text encoder."""
ENCODER_BY_TRAINED_KEY = {"text_encoders_0": "text_encoder", "text_encoders_1": "text_encoder_2"}
_BUNDLED_ENDINGS = ("string_to_param.*", "emb_params", *ENCODER_BY_KEY)
Embeddings = dict[str, dict[str, Tensor]]
"""Token name -> text encoder -> row ``(width,)``."""


def tokens_to_header(embeddings: Mapping[str, Mapping[str, Tensor]]) -> dict[str, str]:
    """Return the header string of learned tokens: JSON, name -> encoder -> base64 of fp16 little-endian, shape."""
    if not embeddings:
        return {}
    stored = {
        name: {encoder: {"data": _encode(row), "shape": list(row.shape)} for encoder, row in sorted(by_encoder.items())}
        for name, by_encoder in embeddings.items()
    }
    return {TOKENS_KEY: json.dumps(stored, ensure_ascii=False)}


def _encode(row: Tensor) -> str:
    values = row.detach().to("cpu", torch.float16).contiguous()
    return base64.b64encode(values.numpy().astype("<f2").tobytes()).decode("ascii")


def tokens_from_header(metadata: Mapping[str, str]) -> Embeddings:
    """Return the tokens of our header string; empty without it.

    Raises:
        LoraFileError: the string does not hold tokens (``bad_metadata``), or as of :func:`validated`.
    """
    text = metadata.get(TOKENS_KEY)
    if text is None:
        return {}
    try:
        stored = json.loads(text)
        embeddings = {
            str(name): {str(encoder): _decode(row) for encoder, row in by_encoder.items()}
            for name, by_encoder in stored.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise LoraFileError(
            f"The LoRA's header string {TOKENS_KEY!r} ({shortened(text)!r}) does not hold tokens; "
            "write the file again with `lora-service convert`.",
            code="bad_metadata",
        ) from error
    return validated(embeddings)


def _decode(row: Mapping[str, Any]) -> Tensor:
    raw = base64.b64decode(row["data"], validate=True)
    shape = [int(size) for size in row["shape"]]
    if len(shape) != 1 or len(raw) != 2 * math.prod(shape) or not raw:
        raise ValueError("the data does not fit the shape")
    return torch.from_numpy(numpy.frombuffer(raw, dtype="<f2").astype("float16"))


def tokens_from_bundle(tensors: Mapping[str, Tensor]) -> tuple[Embeddings, list[str]]:
    """Return the tokens of A1111's ``bundle_emb.`` keys, and a warning for each that cannot be used.

    A bundled embedding is an addition: the LoRA draws without it.

    Args:
        tensors: by key without the prefix: ``NAME.string_to_param.*``, ``.emb_params``, ``.clip_l``, ``.clip_g``.
    """
    embeddings: Embeddings = {}
    warnings: list[str] = []
    tensors_by_name: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        ending = next((ending for ending in _BUNDLED_ENDINGS if key.endswith("." + ending)), None)
        if ending is None:
            warnings.append(f"the tensor {shortened('bundle_emb.' + key)!r} is no embedding of tokens and was left out")
        else:
            tensors_by_name.setdefault(word(key.removesuffix("." + ending)), {})[ending] = tensor
    for name, by_ending in tensors_by_name.items():
        added: Embeddings = {}
        try:
            for ending, tensor in by_ending.items():
                add_rows(added, name, ENCODER_BY_KEY.get(ending, "text_encoder"), tensor)
            embeddings = validated(embeddings | added)
        except LoraFileError as error:
            warnings.append(f"the bundled embedding {shortened(name)!r} was left out: {error}")
    return embeddings, warnings


def word(name: str) -> str:
    """Return an embedding's name as one word of a prompt: ``my cat`` is written ``my_cat``."""
    return re.sub(r"\s+", "_", name.strip())


def tokens_from_training(tensors: Mapping[str, Tensor], word: str = "") -> Embeddings:
    """Return the tokens of a hosting site's ``embeddings.pti``: ``text_encoders_0``, ``text_encoders_1``.

    Args:
        tensors: rows by key.
        word: the name of the tokens together; '': they are ``<s0>``, ``<s1>``, … as that trainer calls them.

    Raises:
        LoraFileError: a key is another one (``unknown_key``), or as of :func:`add_rows` and :func:`validated`.
    """
    embeddings: Embeddings = {}
    for key, rows in tensors.items():
        encoder = ENCODER_BY_TRAINED_KEY.get(key)
        if encoder is None:
            raise LoraFileError(
                f"The key {shortened(key)!r} is none of a trained model's embeddings.", code="unknown_key"
            )
        if word or rows.dim() != 2:
            add_rows(embeddings, word or "<s0>", encoder, rows)
            continue
        for index, row in enumerate(rows[:MAX_TOKENS]):
            add_rows(embeddings, f"<s{index}>", encoder, row)
    return validated(embeddings)


def add_rows(embeddings: Embeddings, name: str, encoder: str, rows: Tensor) -> None:
    """Add an embedding of one or more rows as tokens ``name``, ``name_1``, ``name_2``, … as diffusers names them.

    Raises:
        LoraFileError: the tensor has no rows of one width (``bad_embedding``), or a token has its row already
            (``duplicate_tensor``).
    """
    if rows.dim() not in (1, 2) or rows.numel() == 0 or (rows.dim() == 2 and len(rows) > MAX_TOKENS):
        raise LoraFileError(
            f"The embedding {shortened(name)!r} has the shape {tuple(rows.shape)}; it must be (rows, width), "
            f"with at most {MAX_TOKENS} rows.",
            code="bad_embedding",
        )
    for index, row in enumerate(rows.reshape(-1, rows.shape[-1])):
        by_encoder = embeddings.setdefault(f"{name}_{index}" if index else name, {})
        if encoder in by_encoder:
            raise LoraFileError(
                f"The LoRA has two embeddings {shortened(name)!r} for the {encoder}; keep one.", code="duplicate_tensor"
            )
        by_encoder[encoder] = row


def validated(embeddings: Embeddings) -> Embeddings:
    """Return the tokens if a tokenizer can take their names and a text encoder their rows.

    Raises:
        LoraFileError: a name or an encoder cannot be used or there are too many tokens (``bad_token``), widths differ
            (``bad_embedding``), or a value is ``not_finite``.
    """
    if len(embeddings) > MAX_TOKENS:
        raise LoraFileError(f"The LoRA has {len(embeddings)} tokens; at most {MAX_TOKENS} are read.", code="bad_token")
    for name, by_encoder in embeddings.items():
        _check_token(name, by_encoder)
    for encoder in ("text_encoder", "text_encoder_2"):
        widths = {row.shape for by_encoder in embeddings.values() if (row := by_encoder.get(encoder)) is not None}
        if len(widths) > 1:
            raise LoraFileError(
                f"The LoRA's tokens are of different widths for the {encoder}; they are not of one base.",
                code="bad_embedding",
            )
    return embeddings


def _check_token(name: str, by_encoder: Mapping[str, Tensor]) -> None:
    if not name or len(name) > MAX_NAME_LENGTH or any(c.isspace() or not c.isprintable() for c in name):
        raise LoraFileError(
            f"The LoRA's token {shortened(name)!r} cannot be a word of a prompt; "
            f"it must have 1 to {MAX_NAME_LENGTH} printable characters without spaces.",
            code="bad_token",
        )
    if not by_encoder or not set(by_encoder) <= {"text_encoder", "text_encoder_2"}:
        raise LoraFileError(f"The LoRA's token {name!r} has no row for a known text encoder.", code="bad_token")
    if not all(row.isfinite().all() for row in by_encoder.values()):
        raise LoraFileError(
            f"The LoRA's token {name!r} holds NaN or infinite values; the training went wrong.", code="not_finite"
        )
