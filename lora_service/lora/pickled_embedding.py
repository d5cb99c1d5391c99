"""Textual inversions in PyTorch's own files, ``.pt`` and ``.bin``, read without running anything in them.

    A1111            {"string_to_param": {"*": (rows, width)}, "name": …, "step": …}
    A1111, XL        {"clip_l": (rows, 768), "clip_g": (rows, 1280)}
    diffusers        {"<cat-toy>": (rows, width)}

LoRAs are not read from such files: they are on the sites as safetensors, and are hundreds of times as large.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lora_service.errors import LoraFileError
from lora_service.lora.archive import check_torch_file
from lora_service.lora.formats import embedding
from lora_service.lora.safetensors_file import TensorFile
from lora_service.lora.weights import LoraWeights


def read_torch_embedding(path: Path, name: str) -> LoraWeights:
    """Read a textual inversion.

    Args:
        path: the file.
        name: its name as people know it, which is the word for prompts unless the file names one.

    Raises:
        LoraFileError: it is damaged or holds anything but tensors, numbers and texts (``pickle``), is too large
            (``embedding_too_large``), or is no textual inversion (``unknown_format``).
    """
    try:
        check_torch_file(path, name)
        # Older files of A1111 hold a ParameterDict, which is a dict of tensors.
        # Opened here, as PyTorch goes by the name, and files in the cache are all called .safetensors.
        with torch.serialization.safe_globals([nn.ParameterDict]), path.open("rb") as file:
            stored = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise LoraFileError(
            f"{name} is damaged, or holds more than tensors, numbers and texts; give the embedding as .safetensors.",
            code="pickle",
        ) from error
    tensors = _tensors(stored)
    if not tensors or not all(tensor.is_floating_point() and tensor.isfinite().all() for tensor in tensors.values()):
        raise LoraFileError(f"{name} holds no textual inversion, or one with NaN.", code="unknown_format")
    try:
        return embedding.read(TensorFile(tensors, {}, Path(name).stem))
    except LoraFileError as error:
        raise LoraFileError(f"{name}: {error}", code=error.code) from error


def _tensors(stored: Any) -> dict[str, Tensor]:
    """Return the tensors by the keys of an embedding file in safetensors."""
    if not isinstance(stored, dict):
        return {}
    if "string_to_param" in stored:
        rows = list(dict(stored["string_to_param"].items()).values())
        stored = {"string_to_param.*": rows[0] if rows else None}
    return {str(key): value.detach() for key, value in stored.items() if isinstance(value, Tensor)}
