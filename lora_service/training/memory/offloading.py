"""Models that wait in the host's memory while a training does not need them.

The VAE is needed until the latents are cached, and again for samples. The text encoders are needed from then on: at
each step, unless nothing learns in them, where each caption of a block of batches is encoded once. So it is by T5
beside CLIP's encoders that learn.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lora_service.models.block_offloading import BlockOffloading
from lora_service.models.diffusion_base import DiffusionBase

_HOST = torch.device("cpu")


class OffloadedModels:
    """Frozen models that can wait on the host, and come to their device only where they are used.

    Their tensors keep their identity; only what they point to changes. The copy on the host is made when they leave
    the first time and is kept, so that leaving again is no transfer.

    Args:
        models: nothing in them learns while they wait.
        device: theirs.
    """

    def __init__(self, *models: nn.Module, device: torch.device) -> None:
        self._models, self._device = models, device
        self._on_host: list[tuple[Tensor, Tensor]] = []
        self._users = 0

    @property
    def are_waiting(self) -> bool:
        """True within :meth:`waiting`."""
        return bool(self._on_host)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within the context the models are on the host, but in :meth:`on_device`; afterwards they are back."""
        try:
            for tensor in self._tensors():
                host = self._to_host(tensor.data)
                self._on_host.append((tensor, host))
                tensor.data = host
            yield
        except torch.OutOfMemoryError as error:
            traceback.clear_frames(error.__traceback__)  # their locals hold what the models need the place of
            raise
        finally:
            self._come()
            self._on_host, self._users = [], 0

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Within the context the models are on their device; does nothing while they are not :meth:`waiting`."""
        if not self._users:
            self._come()
        self._users += 1
        try:
            yield
        finally:
            self._users = max(0, self._users - 1)
            if not self._users:
                self._leave()

    def _come(self) -> None:
        with torch.inference_mode(False):  # a tensor that is made in it can never be saved for a backward pass
            for tensor, host in self._on_host:
                tensor.data = self._to_device(host)

    def _leave(self) -> None:
        for tensor, host in self._on_host:
            tensor.data = host

    def _tensors(self) -> list[Tensor]:
        return [t for model in self._models for each in (model.parameters(), model.buffers()) for t in each]

    def _to_host(self, tensor: Tensor) -> Tensor:
        return tensor.to(_HOST)

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device)


@contextmanager
def blocks_wait(base: DiffusionBase, *, is_on: bool) -> Iterator[None]:
    """Within the context the blocks of the transformer wait on the host, if that ``is_on``; some always do."""
    if not is_on or base.waiting_blocks is not None:
        yield
        return
    with BlockOffloading(base.blocks, base.device).waiting():
        yield


@dataclass(frozen=True)
class Offloading:
    """The models of a training that may wait on the host.

    Attributes:
        text: the text encoders without the companions of those that learn.
        companions: these, which wait while the others learn too.
        is_on: False if they stay on their device all the time.
    """

    vae: OffloadedModels
    text: OffloadedModels
    companions: OffloadedModels
    is_on: bool = False

    @staticmethod
    def of(base: DiffusionBase, *, is_on: bool) -> Offloading:
        """Return the VAE and the text encoders of ``base``."""
        companions = base.text.companions
        others = [encoder for name, encoder in base.text.encoders.items() if name not in companions]
        vae, text, beside = (
            OffloadedModels(*models, device=base.device) for models in ([base.vae], others, companions.values())
        )
        return Offloading(vae, text, beside, is_on)

    @contextmanager
    def vae_waits(self) -> Iterator[None]:
        """Within the context the VAE waits on the host, if that :attr:`is_on`."""
        if not self.is_on:
            yield
            return
        with self.vae.waiting():
            yield

    @contextmanager
    def text_waits(self, *, is_needed: bool, companions_are_needed: bool = False) -> Iterator[None]:
        """Within the context the text encoders wait on the host, if that :attr:`is_on`, unless each step needs them."""
        waits = {self.text: not is_needed, self.companions: not companions_are_needed}
        with ExitStack() as stack:
            for models, wait in waits.items():
                if wait and self.is_on:
                    stack.enter_context(models.waiting())
            yield
