"""Modules compiled by ``torch.compile``, once for each class of shapes, whatever LoRA is merged into their weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Backend = str | Callable[..., Any]


class CompiledModule:
    """A module whose calls are compiled: the first shapes exactly, all others by one program for any.

    The method must return a tuple of tensors. Two programs are compiled, when they are first needed, and a third where
    a batch is of one, which the compiler tells from more. Weights are arguments of the programs: changing their values
    compiles nothing anew, and as long as they keep their addresses CUDA graphs stay valid too. While somebody has hooks
    on the module, it is called uncompiled.

    Args:
        module: the module; it stays as it is, for callers that want it uncompiled.
        method: the name of the method that is compiled.
        backend: of ``torch.compile``.
        cuda_graphs: record and replay the kernels of the first shapes.
    """

    def __init__(
        self,
        module: nn.Module,
        method: str = "forward",
        *,
        backend: Backend = "inductor",
        cuda_graphs: bool = False,
    ) -> None:
        self._module, self._method, self._cuda_graphs = module, method, cuda_graphs
        mode = "reduce-overhead" if cuda_graphs else None
        # Two functions, because the compiler keeps its programs by the code that was called.
        self._exact = torch.compile(self._call_exactly, dynamic=False, backend=backend, mode=mode)
        self._general = torch.compile(self._call_generally, dynamic=True, backend=backend)
        self._exact_shapes: tuple[Any, ...] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._module._forward_pre_hooks or self._module._forward_hooks:
            plain = self._module if self._method == "forward" else getattr(self._module, self._method)
            return plain(*args, **kwargs)
        args = tuple(_as_float(arg) for arg in args)
        shapes = (*map(_shape, args), *((name, _shape(value)) for name, value in sorted(kwargs.items())))
        if self._exact_shapes is None:
            self._exact_shapes = shapes
        if shapes != self._exact_shapes:
            return self._general(*args, **kwargs)
        outputs = self._exact(*args, **kwargs)
        # The next replay writes into the same memory, and some schedulers keep what was predicted before.
        return tuple(output.clone() for output in outputs) if self._cuda_graphs else outputs

    def _call_exactly(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._module, self._method)(*args, **kwargs)

    def _call_generally(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._module, self._method)(*args, **kwargs)


def _as_float(value: Any) -> Any:
    """Return timesteps as floats: some schedulers have whole ones, and for each dtype there would be a program."""
    if isinstance(value, Tensor) and not value.is_floating_point():
        return value.float()
    return value


def _shape(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, dict):
        return tuple((name, _shape(part)) for name, part in sorted(value.items()))
    if isinstance(value, list | tuple):
        return tuple(map(_shape, value))
    return value
