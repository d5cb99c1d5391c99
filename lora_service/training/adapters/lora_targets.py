"""The layers of a base that a LoRA changes, by the names of the input ``lora_targets``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from lora_service.models.diffusion_base import DiffusionBase
from lora_service.training.inputs.config import LoraTargets

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_GEGLU = ("ff.net.0.proj",)
_FEED_FORWARD = (*_GEGLU, "ff.net.2")
_PROJECTIONS = ("proj_in", "proj_out")
_CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv")
_TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
_TEXT_MLP = ("fc1", "fc2")


TargetLayers = Mapping[str, nn.Linear | nn.Conv2d]
"""Module path -> the layer there."""


@dataclass(frozen=True)
class _TargetSet:
    """Ends of module paths; ``every_linear`` adds all linear layers of the UNet."""

    unet: tuple[str, ...]
    text: tuple[str, ...] = _TEXT_ATTENTION
    every_linear: bool = False

    def covers(self, component: str, path: str, layer: nn.Module) -> bool:
        """Return True if the layer at ``path`` of ``component`` is one of the set."""
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            return False
        if component == "unet" and self.every_linear and isinstance(layer, nn.Linear):
            return True
        endings = self.unet if component == "unet" else self.text
        return path.endswith(tuple("." + ending for ending in endings))


_ATTENTION_AND_FF = (*_ATTENTION, *_FEED_FORWARD)
_KOHYA = (*_ATTENTION_AND_FF, *_PROJECTIONS)
_KOHYA_TEXT = (*_TEXT_ATTENTION, *_TEXT_MLP)
TARGETS: Mapping[LoraTargets, _TargetSet] = {
    "attention": _TargetSet(_ATTENTION),
    # What the original trainers taught, https://github.com/cloneofsimo/lora.
    "attention+geglu": _TargetSet((*_ATTENTION, *_GEGLU)),
    "attention+ff": _TargetSet(_ATTENTION_AND_FF),
    "attention+ff+conv": _TargetSet((*_ATTENTION_AND_FF, *_CONVOLUTIONS)),
    "all-linear": _TargetSet((), _KOHYA_TEXT, every_linear=True),
    # Transformer2DModel, CLIPAttention and CLIPMLP in whole, https://github.com/kohya-ss/sd-scripts; with conv_dim
    # ResnetBlock2D, Downsample2D and Upsample2D too.
    "kohya": _TargetSet(_KOHYA, _KOHYA_TEXT),
    "kohya+conv": _TargetSet((*_KOHYA, *_CONVOLUTIONS, "time_emb_proj"), _KOHYA_TEXT),
}


def targets_in(component: str, model: nn.Module, targets: LoraTargets) -> TargetLayers:
    """Return the layers of ``component`` that ``targets`` names, by module path."""
    covers = TARGETS[targets].covers
    return {path: layer for path, layer in model.named_modules() if covers(component, path, layer)}  # type: ignore[misc]


def learning_targets(base: DiffusionBase, component: str, targets: LoraTargets) -> TargetLayers:
    """Return the layers of :func:`targets_in` that a gradient reaches: those of a text encoder that its embeds need."""
    layers = targets_in(component, base.components[component], targets)
    if component == "unet":
        return layers
    unused = base.text.unused_layers(component)
    return {path: layer for path, layer in layers.items() if not any(f".{part}." in f".{path}" for part in unused)}
