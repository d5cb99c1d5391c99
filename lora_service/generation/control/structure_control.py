"""A ControlNet or T2I-Adapter beside the UNet, for any pipeline.

diffusers has a pipeline of its own for each pair of task and kind of control, and has none for some (T2I-Adapters with
an initial image or a mask). All of them give the UNet the same arguments, so a hook before the UNet's forward pass adds
these, whichever pipeline runs it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, T2IAdapter
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from lora_service.generation.denoising import DenoisingBatch, DenoisingCallback
from lora_service.models.control_loading import Adapter
from lora_service.models.diffusion_base import DiffusionBase


class StructureControl(DenoisingCallback):
    """Lets the UNet of ``base`` follow a condition image while a batch is denoised.

    Args:
        base: the base model.
        adapter: a ControlNet or T2I-Adapter for it, on its device.
        image: the condition image, in the size of the pictures.
        scale: the factor of the adapter's features: 1 is as trained.
    """

    def __init__(self, base: DiffusionBase, adapter: Adapter, image: Image.Image, scale: float) -> None:
        self._base, self._adapter, self._scale = base, adapter, scale
        condition = _to_tensor(image, _channels(adapter)).to(base.device, base.dtype)
        self._condition = condition
        self._features: list[Tensor] = []
        if isinstance(adapter, T2IAdapter):
            self._features = [scale * each for each in adapter(_padded(condition, adapter.config.downscale_factor))]
        self._handle: Any = None

    def on_batch_start(self, batch: DenoisingBatch) -> None:
        hook = self._add_features if self._features else self._add_residuals
        self._handle = self._base.unet.register_forward_pre_hook(hook, with_kwargs=True)

    def on_batch_end(self, batch: DenoisingBatch) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.remove()

    def _add_features(self, unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Add a T2I-Adapter's features, which are the same in all steps."""
        count = len(args[0])
        # A list of its own for each pass: the UNet takes the features out of it, and may add to them in place.
        features = [each.repeat(count, 1, 1, 1) for each in self._features]
        return args, {**kwargs, "down_intrablock_additional_residuals": features}

    def _add_residuals(self, unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Add a ControlNet's residuals for the noisy latents and timestep of this pass."""
        noisy, timestep = args[:2]
        # Inpainting UNets get mask and masked picture behind the latents, which ControlNets do not know.
        noisy = noisy[:, : self._adapter.config.in_channels]
        down, mid = self._adapter(
            noisy,
            timestep,
            encoder_hidden_states=kwargs["encoder_hidden_states"],
            controlnet_cond=self._condition.repeat(len(noisy), 1, 1, 1),
            conditioning_scale=self._scale,
            added_cond_kwargs=kwargs.get("added_cond_kwargs"),
            return_dict=False,
        )
        return args, {**kwargs, "down_block_additional_residuals": down, "mid_block_additional_residual": mid}


def _channels(adapter: Adapter) -> int:
    config = adapter.config
    return int(config.conditioning_channels if isinstance(adapter, ControlNetModel) else config.in_channels)


def _to_tensor(image: Image.Image, channels: int) -> Tensor:
    """Return ``(1, channels, h, w)`` in [0, 1]; one channel is the picture in gray."""
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"), dtype=np.float32) / 255
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)[None]


def _padded(condition: Tensor, factor: int) -> Tensor:
    """Return a condition whose height and width are multiples of ``factor``, by which a T2I-Adapter folds them."""
    height, width = condition.shape[-2:]
    return pad(condition, (0, -width % factor, 0, -height % factor))
