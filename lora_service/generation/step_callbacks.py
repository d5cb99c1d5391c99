"""Callbacks of the denoising that change the UNet between its steps."""

from __future__ import annotations

from torch import Tensor

from lora_service.generation.denoising import DenoisingBatch, DenoisingCallback
from lora_service.generation.layer_cache import LayerCache
from lora_service.lora.patcher import Patcher


class LoraSteps(DenoisingCallback):
    """Has each LoRA act in its share of the steps, which the patcher knows by the LoRAs' scales.

    Changing the UNet takes as long as merging a LoRA, once for each LoRA that begins or ends between two steps.
    """

    def __init__(self, patcher: Patcher) -> None:
        self._patcher = patcher

    def on_batch_start(self, batch: DenoisingBatch) -> None:
        self._patcher.move_to(0.0)

    def on_step_end(self, batch: DenoisingBatch, latents: Tensor) -> Tensor:
        if batch.step < batch.steps:
            self._patcher.move_to(batch.step / batch.steps)
        return latents


class FreshLayerCache(DenoisingCallback):
    """Keeps results of layers within a batch of images only."""

    def __init__(self, cache: LayerCache) -> None:
        self._cache = cache

    def on_batch_start(self, batch: DenoisingBatch) -> None:
        self._cache.reset()

    def on_batch_end(self, batch: DenoisingBatch) -> None:
        self._cache.reset()
