"""Leaving out layers of a UNet in most steps, for drafts (DeepCache, https://arxiv.org/abs/2312.00858).

What the inner layers of a UNet say changes slowly from step to step. Every few steps all layers are computed and the
inner ones' results kept; in the steps between only the outermost layers are computed: the first residual block on the
way down and the last two on the way up, with their attention. The last one alone is faster, but draws other pictures;
two draw nearly the same. The layers' ``forward`` is replaced while the UNet is called, so that diffusers' own code of
the UNet stays in use, whatever its version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from lora_service.generation.denoising import DenoisingBatch, DenoisingCallback


class LayerCache:
    """The kept results of a UNet's inner layers; one for each batch of images, :meth:`reset` between them.

    Args:
        unet: diffusers' ``UNet2DConditionModel``.
        interval: every so many calls all layers are computed; 1: in all.
    """

    def __init__(self, unet: nn.Module, interval: int) -> None:
        self._layers = inner_layers(unet)
        self._interval = interval
        self._results: dict[int, Any] = {}
        self._calls = 0

    def reset(self) -> None:
        """Forget the results: the next call computes all layers."""
        self._results.clear()
        self._calls = 0

    @contextmanager
    def call(self) -> Iterator[None]:
        """Have the layers keep, or repeat, their results within; they are as they were afterwards."""
        keep = self._calls % self._interval == 0
        self._calls += 1
        try:
            for number, layer in enumerate(self._layers):
                layer.forward = self._keeping(number, layer) if keep else self._repeating(number)
            yield
        finally:
            for layer in self._layers:
                layer.__dict__.pop("forward", None)

    def _keeping(self, number: int, layer: nn.Module) -> Callable[..., Any]:
        forward = type(layer).forward

        def kept(*args: Any, **kwargs: Any) -> Any:
            result = self._results[number] = forward(layer, *args, **kwargs)
            return result

        return kept

    def _repeating(self, number: int) -> Callable[..., Any]:
        return lambda *args, **kwargs: self._results[number]


def inner_layers(unet: Any) -> list[nn.Module]:
    """Return the layers whose results are kept: all but the first of the way down and the last two of the way up."""
    down, up = unet.down_blocks[0], unet.up_blocks[-1]
    layers: list[nn.Module] = [*unet.down_blocks[1:], unet.mid_block, *unet.up_blocks[:-1], *(down.downsamplers or ())]
    for kind in ("resnets", "attentions"):
        layers += [*getattr(down, kind, ())][1:]
        layers += [*getattr(up, kind, ())][:-2]
    return layers


class FreshLayerCache(DenoisingCallback):
    """Keeps results of layers within a batch of images only."""

    def __init__(self, cache: LayerCache) -> None:
        self._cache = cache

    def on_batch_start(self, batch: DenoisingBatch) -> None:
        self._cache.reset()

    def on_batch_end(self, batch: DenoisingBatch) -> None:
        self._cache.reset()
