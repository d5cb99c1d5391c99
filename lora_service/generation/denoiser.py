"""Stands in for the UNet of a pipeline: rescaled guidance, and drafts that leave most of its layers out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lora_service.generation.layer_cache import LayerCache


class Denoiser:
    """A UNet as a pipeline calls it; everything else that is asked of it is the UNet's own.

    The pipelines combine the predictions without and with the prompt themselves, and not all of them can rescale the
    result. With ``guidance_rescale`` both predictions that they get are the rescaled result, which their own
    combination of two equal ones leaves as it is.

    Args:
        unet: diffusers' UNet.
        compiled: the same UNet compiled, which is called where all of its layers are computed; None: it is not.
        guidance_scale: that of the pipeline, which batches both predictions if it is above 1.
        guidance_rescale: φ of https://arxiv.org/abs/2305.08891, section 3.4: 0 is off, 1 keeps the contrast of the
            prediction with the prompt.
        layer_cache: leaves out layers in most calls; None: none are.
    """

    def __init__(
        self,
        unet: Any,
        compiled: Any = None,
        *,
        guidance_scale: float = 1.0,
        guidance_rescale: float = 0.0,
        layer_cache: LayerCache | None = None,
    ) -> None:
        self._unet = unet
        self._whole = compiled or unet
        self._guidance_scale = guidance_scale
        self._guidance_rescale = guidance_rescale if guidance_scale > 1 else 0.0
        self.layer_cache = layer_cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self._unet, name)

    def __call__(self, sample: Tensor, timestep: Any, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        """Predict as the UNet does; ``sample`` is ``(b, c, h, w)``, with guidance ``(2b, c, h, w)``."""
        if self.layer_cache is None:
            output = self._whole(sample, timestep, *args, return_dict=False, **kwargs)[0]
        else:
            with self.layer_cache.call():
                output = self._unet(sample, timestep, *args, return_dict=False, **kwargs)[0]
        if self._guidance_rescale:
            output = rescale_guidance(output, self._guidance_scale, self._guidance_rescale)
        if not return_dict:
            return (output,)
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

        return UNet2DConditionOutput(sample=output)


def rescale_guidance(predictions: Tensor, scale: float, rescale: float) -> Tensor:
    """Return the guided and rescaled prediction, twice.

    Args:
        predictions: without and with the prompt, ``(2b, c, h, w)``.
        scale: the guidance scale.
        rescale: the share of the rescaled prediction in the result (equations 15 and 16 of
            https://arxiv.org/abs/2305.08891).
    """
    without, prompted = predictions.chunk(2)
    guided = without + scale * (prompted - without)
    dims = list(range(1, guided.dim()))
    rescaled = guided * (prompted.std(dim=dims, keepdim=True) / guided.std(dim=dims, keepdim=True))
    result = rescale * rescaled + (1 - rescale) * guided
    return torch.cat([result, result])
