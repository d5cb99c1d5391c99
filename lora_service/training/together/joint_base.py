"""The base with the LoRAs of several jobs side by side: each group of a batch's rows passes those of its job."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from lora_service.lora.side_by_side import add_loras
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.text_encoders import TextEncoders
from lora_service.training.adapters.lora_layers import LoraFactors, lora_factors
from lora_service.training.adapters.textual_inversion import LearnedTokens
from lora_service.training.together.shared_weights import copied_modules


class SideBySideLora(nn.Module):
    """A layer beside the LoRA of each of ``g`` jobs, whose parameters stay the jobs' own.

    Args:
        layer: of the base.
        loras: of one rank.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, loras: Sequence[LoraFactors]) -> None:
        super().__init__()
        self.layer, self._loras = layer, tuple(loras)
        scalings = torch.tensor([lora.scaling for lora in loras], device=loras[0].up.device)
        self._scalings = None if bool((scalings == 1).all()) else scalings.view(-1, *[1] * loras[0].up.dim())

    @property
    def weight(self) -> Tensor:
        """The layer's; models look at its dtype, as at that of a layer of peft."""
        return self.layer.weight

    @property
    def bias(self) -> Tensor | None:
        """The layer's."""
        return self.layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output for ``x``, ``g`` groups of rows."""
        downs, ups = torch.stack([lora.down for lora in self._loras]), torch.stack([lora.up for lora in self._loras])
        return add_loras(self.layer, x, downs, ups if self._scalings is None else ups * self._scalings)


class SideBySideTokens(nn.Module):
    """The token embeddings of each of ``g`` jobs, which know other tokens."""

    def __init__(self, embeddings: Sequence[nn.Module]) -> None:
        super().__init__()
        self._embeddings = tuple(embeddings)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the embeddings ``(b, n, width)`` of ``ids`` ``(b, n)``, ``g`` groups of rows."""
        parts = ids.chunk(len(self._embeddings))
        return torch.cat([embed(part) for embed, part in zip(self._embeddings, parts, strict=True)])


def adapter_shape(base: DiffusionBase) -> Hashable | None:
    """Return what the adapters of two jobs share that can be side by side; None where these never can.

    Only plain LoRA can, of linear layers and convolutions; not DoRA and LoKr, nor where the rows are not as many for
    each picture of a batch. Nor can backbones with hooks, as those have whose blocks wait on the host; transformers
    has some on text encoders, which are copied with them.
    """
    shape: list[Hashable] = []
    for component, model in base.components.items():
        is_backbone = component == base.family.backbone
        for path, module in model.named_modules():
            if is_backbone and (module._forward_pre_hooks or module._forward_hooks):
                return None
            if isinstance(module, BaseTunerLayer):
                factors = lora_factors(module)
                if factors is None or (is_backbone and path.partition(".")[0] in base.family.ragged):
                    return None
                shape.append((component, path, tuple(factors.down.shape)))
            elif isinstance(module, LearnedTokens):
                shape.append((component, path))
    return tuple(shape)


def joint_base(base: DiffusionBase, jobs: Sequence[DiffusionBase], text: TextEncoders) -> DiffusionBase:
    """Return a base with the adapters of ``jobs`` side by side.

    Args:
        base: whose weights the jobs share.
        jobs: with adapters of one :func:`adapter_shape`.
        text: of one of the jobs; they encode alike.
    """
    models = copied_modules(jobs[0].components)  # the first job's encoders know where a prompt with new tokens ends
    for component, model in models.items():
        for path, module in list(model.named_modules()):
            theirs = [job.components[component].get_submodule(path) for job in jobs]
            if isinstance(module, BaseTunerLayer):
                loras = [factors for each in theirs if (factors := lora_factors(each)) is not None]
                _replace(model, path, SideBySideLora(cast(Any, module.get_base_layer()), loras))
            elif isinstance(module, LearnedTokens):
                model.set_input_embeddings(SideBySideTokens(theirs))
    encoders = {name: models.get(name, encoder) for name, encoder in base.text.encoders.items()}
    joint_text = replace(text, encoders=encoders, on_device=nullcontext, companions_on_device=nullcontext)
    return replace(base, backbone=models[base.family.backbone], text=joint_text, compiled=None, compiled_decoder=None)


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
