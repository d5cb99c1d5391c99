"""Tiny random ControlNets and T2I-Adapters for the small bases, with no zero weights, so that they change pictures."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import ControlNetModel, T2IAdapter

from lora_service.models.diffusion_base import DiffusionBase


@torch.no_grad()
def small_controlnet(base: DiffusionBase) -> ControlNetModel:
    """Make a ControlNet for a small base; its layers that begin as zeros are random."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        controlnet = ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=(16, 32, 96))
        for name, parameter in controlnet.named_parameters():
            if "controlnet" in name and parameter.dim() > 1:
                parameter.normal_(std=0.1)
    return controlnet.eval()


def small_t2i_adapter(base: DiffusionBase, channels: int = 1) -> T2IAdapter:
    """Make a T2I-Adapter of the class of the base's family."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        kind, factor = ("full_adapter_xl", 8) if base.family.name == "sdxl" else ("full_adapter", 4)
        widths = [*base.unet.config.block_out_channels]
        widths = [*widths, widths[-1], widths[-1]] if base.family.name == "sdxl" else widths
        adapter = T2IAdapter(channels, widths, 1, factor, kind)
    return adapter.eval()


def saved(model: ControlNetModel | T2IAdapter, folder: Path, **options: object) -> str:
    """Save a model; return its folder as the setting ``ADAPTERS`` takes it."""
    model.save_pretrained(folder, **options)
    return str(folder)
