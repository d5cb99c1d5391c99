"""A base of a job's own on the weights of another: it can add layers and tokens as if it were alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from lora_service.models.diffusion_base import DiffusionBase


def sharing_weights(base: DiffusionBase) -> DiffusionBase:
    """Return a base whose modules are copies, and whose tensors lie where those of ``base`` do.

    Whoever changes values changes those of both. Whoever changes modules, or what a parameter points to, as patching
    and new tokens do, changes the copy alone.
    """
    models = copied_modules(base.models)
    return replace(
        base,
        backbone=models[base.family.backbone],
        vae=models["vae"],
        text=replace(base.text, encoders={name: models[name] for name in base.text.encoders}),
        compiled=None,
        compiled_decoder=None,
    )


def copied_modules(models: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Return copies of ``models`` whose parameters are new ones of the same tensors."""
    shared: dict[int, Any] = {}
    for model in models.values():
        for parameter in model.parameters():
            is_plain = type(parameter) is nn.Parameter  # bitsandbytes' have state of their own, and nobody moves them
            own = nn.Parameter(parameter.data, requires_grad=parameter.requires_grad) if is_plain else parameter
            shared[id(parameter)] = own
        shared |= {id(buffer): buffer for buffer in model.buffers()}
    return {name: copy.deepcopy(model, shared) for name, model in models.items()}
