"""A transformer whose blocks wait in the host's memory, each coming to the device where it is computed.

diffusers' group offloading is not used: with streams it brings the weights that it first saw, whatever LoRA was merged
into them since; without them it copies each block back to the host; and in a backward pass it takes a block away before
its gradients are computed. Here one block is on the device at a time, the last that was computed, and what waits is
never copied back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_HOST = torch.device("cpu")


class BlockOffloading:
    """Blocks of a model that wait on the host; layers that are added to them later stay on the device.

    Their tensors keep their identity; only what they point to changes. A backward pass needs gradient checkpointing:
    then each block is computed anew, and so on the device, just before its gradients are; without it, autograd holds
    the weights on the device all the time.

    Args:
        blocks: computed one after another.
        device: that they are computed on.
    """

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        self._tensors = {block: [*block.parameters(), *block.buffers()] for block in blocks}
        self._device = device
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._on_device: nn.Module | None = None
        self._copies: list[tuple[Tensor, Tensor, Tensor]] = []

    @property
    def block_bytes(self) -> list[int]:
        """The bytes of each block."""
        return [sum(each.numel() * each.element_size() for each in tensors) for tensors in self._tensors.values()]

    @property
    def tensors(self) -> list[Tensor]:
        """All weights and buffers of the blocks."""
        return [tensor for tensors in self._tensors.values() for tensor in tensors]

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within the context the blocks wait on the host; afterwards all are on their device."""
        try:
            self.start()
            yield
        finally:
            self.stop()

    def start(self) -> None:
        """Have the blocks wait on the host from now on."""
        for tensor in self.tensors:
            tensor.data = self._to_host(tensor.data)
        self._hooks = [block.register_forward_pre_hook(self._come) for block in self._tensors]

    def stop(self) -> None:
        """Bring all blocks to the device for good."""
        self._leave()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for tensor in self.tensors:
            tensor.data = self._to_device(tensor.data)

    def _come(self, block: nn.Module, inputs: Any) -> None:
        if block is self._on_device:
            return
        self._leave()
        self._on_device = block
        with torch.inference_mode(False):  # a tensor that is made in it can never be saved for a backward pass
            for tensor in self._tensors[block]:
                host, moved = tensor.data, self._to_device(tensor.data)
                self._copies.append((tensor, host, moved))
                tensor.data = moved

    def _leave(self) -> None:
        """Let the block on the device wait again; a weight that was changed meanwhile keeps its change."""
        for tensor, host, moved in self._copies:
            is_unchanged = tensor.data.data_ptr() == moved.data_ptr()
            tensor.data = host if is_unchanged else self._to_host(tensor.data)
        self._on_device, self._copies = None, []

    def _to_host(self, tensor: Tensor) -> Tensor:
        host = tensor.to(_HOST)
        return host.pin_memory() if self._device.type == "cuda" else host

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, non_blocking=True)
