"""The tensors in dataclasses, mappings and tuples, such as a micro-batch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor


def shape_of(value: Any) -> Hashable:
    """Return what two batches share that differ in their tensors' values alone."""
    if isinstance(value, Tensor):
        return (*value.shape, value.dtype)
    if is_dataclass(value) and not isinstance(value, type):
        return tuple(shape_of(getattr(value, each.name)) for each in fields(value))
    if isinstance(value, Mapping):
        return tuple((name, shape_of(each)) for name, each in value.items())
    if isinstance(value, tuple):
        return tuple(map(shape_of, value))
    return value  # type: ignore[no-any-return]


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return ``value`` with its tensors changed, in dataclasses, mappings and tuples."""
    if isinstance(value, Tensor):
        return change(value)
    if is_dataclass(value) and not isinstance(value, type):
        changed = {each.name: map_tensors(getattr(value, each.name), change) for each in fields(value)}
        return replace(value, **changed)
    if isinstance(value, Mapping):
        return {name: map_tensors(each, change) for name, each in value.items()}
    if isinstance(value, tuple):
        return tuple(map_tensors(each, change) for each in value)
    return value


def tensors_of(value: Any) -> list[Tensor]:
    """Return the tensors in ``value``, in the order of :func:`map_tensors`."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(value, keep)
    return found
