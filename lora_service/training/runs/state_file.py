"""A tree of state (dictionaries, lists, numbers, texts, tensors) in one safetensors file.

Tensors are the file's, the rest is JSON in its header. There is no pickle in it: a stranger's file can run nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lora_service.whole_files import whole_file

_TREE = "tree"
_TENSOR, _TUPLE, _DICT = "$tensor", "$tuple", "$dict"


def write_state(path: Path, tree: Mapping[str, Any]) -> None:
    """Write ``tree`` to ``path``: whole, or not at all, also if the process or the machine dies meanwhile.

    Raises:
        TypeError: it holds something else than the types above.
    """
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(_packed(tree, tensors))
    with whole_file(path, durable=True) as part:
        save_file(tensors, part, {_TREE: text})


def read_state(path: Path) -> dict[str, Any]:
    """Return the tree in ``path``, its tensors on the CPU.

    Raises:
        ValueError: the file is damaged, or none of :func:`write_state`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
            tree = json.loads((file.metadata() or {})[_TREE])
        unpacked = _unpacked(tree, tensors)
    except (OSError, SafetensorError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error
    if not isinstance(unpacked, dict):
        raise ValueError(f"{path.name} holds no state")
    return unpacked


def write_text(path: Path, text: str) -> None:
    """Write a text file whole, or not at all."""
    with whole_file(path, durable=True) as part:
        part.write_text(text, encoding="utf-8")


def _packed(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Return ``value`` as JSON has it, and put its tensors into ``tensors``."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()  # a copy: none may share memory
        return {_TENSOR: name}
    if isinstance(value, list):
        return [_packed(each, tensors) for each in value]
    if isinstance(value, tuple):
        return {_TUPLE: [_packed(each, tensors) for each in value]}
    if isinstance(value, Mapping):
        # As pairs, since an optimiser's keys are numbers.
        return {_DICT: [[_packed(key, tensors), _packed(each, tensors)] for key, each in value.items()]}
    raise TypeError(f"a state cannot hold {type(value).__name__}")


def _unpacked(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(each, tensors) for each in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return tensors[value[_TENSOR]]
    if _TUPLE in value:
        return tuple(_unpacked(each, tensors) for each in value[_TUPLE])
    return {_unpacked(key, tensors): _unpacked(each, tensors) for key, each in value[_DICT]}
