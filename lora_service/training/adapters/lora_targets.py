"""The layers of a base that a LoRA changes, by the names of the input ``lora_targets``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from lora_service.errors import InputError
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.families.family import Family, TargetNames
from lora_service.training.inputs.config import LoraTargets

_TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
_TEXT_MLP = ("fc1", "fc2")


TargetLayers = Mapping[str, nn.Linear | nn.Conv2d]
"""Module path -> the layer there."""


@dataclass(frozen=True)
class _TargetSet:
    """Ends of module paths; ``every_linear`` adds all linear layers of the backbone, or of its children ``within``."""

    backbone: tuple[str, ...]
    text: tuple[str, ...] = _TEXT_ATTENTION
    every_linear: bool = False
    within: tuple[str, ...] = ()

    def covers(self, path: str, layer: nn.Module, *, of_backbone: bool) -> bool:
        """Return True if the layer at ``path`` is one of the set."""
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            return False
        if of_backbone and self.every_linear and isinstance(layer, nn.Linear):
            return not self.within or path.split(".")[0] in self.within
        endings = self.backbone if of_backbone else self.text
        return path.endswith(tuple("." + ending for ending in endings))


_KOHYA_TEXT = (*_TEXT_ATTENTION, *_TEXT_MLP)


def _sets(names: TargetNames) -> Mapping[LoraTargets, _TargetSet]:
    attention_and_ff = (*names.attention, *names.gate, *names.feed_forward)
    kohya = (*attention_and_ff, *names.projections)
    kohya_convolutions = (*kohya, *names.convolutions, *names.more_convolutions)
    sets: dict[LoraTargets, _TargetSet] = {
        "attention": _TargetSet(names.attention),
        # What the original trainers taught, https://github.com/cloneofsimo/lora.
        "attention+geglu": _TargetSet((*names.attention, *names.gate)),
        "attention+ff": _TargetSet(attention_and_ff),
        "all-linear": _TargetSet((), _KOHYA_TEXT, every_linear=True),
        # Transformer2DModel, CLIPAttention and CLIPMLP in whole, https://github.com/kohya-ss/sd-scripts; with conv_dim
        # ResnetBlock2D, Downsample2D and Upsample2D too. Of transformers, their blocks in whole.
        "kohya": _TargetSet(kohya, _KOHYA_TEXT, every_linear=bool(names.blocks), within=names.blocks),
    }
    if names.convolutions:
        sets["attention+ff+conv"] = _TargetSet((*attention_and_ff, *names.convolutions))
        sets["kohya+conv"] = _TargetSet(kohya_convolutions, _KOHYA_TEXT)
    return sets


def check_targets(base: DiffusionBase, targets: LoraTargets) -> None:
    """Check that the base has the layers that the input ``lora_targets`` names.

    Raises:
        InputError: it has no convolutions (``not_for_this_base``).
    """
    if targets not in (sets := _sets(base.family.targets)):
        expected = f"{' or '.join(sets)} for {base.family.title}, which has no convolutions"
        raise InputError("lora_targets", targets, expected, code="not_for_this_base")


def targets_in(component: str, model: nn.Module, targets: LoraTargets, family: Family) -> TargetLayers:
    """Return the layers of ``component`` that ``targets`` names, by module path; none that ``family`` does not have."""
    of_backbone = component == family.backbone
    chosen = _sets(family.targets).get(targets, _TargetSet(()))
    return {
        path: layer  # type: ignore[misc]
        for path, layer in model.named_modules()
        if chosen.covers(path, layer, of_backbone=of_backbone)
    }


def learning_targets(base: DiffusionBase, component: str, targets: LoraTargets) -> TargetLayers:
    """Return the layers of :func:`targets_in` that a gradient reaches: those of a text encoder that its embeds need."""
    layers = targets_in(component, base.components[component], targets, base.family)
    if component == base.family.backbone:
        return layers
    unused = base.text.unused_layers(component)
    return {path: layer for path, layer in layers.items() if not any(f".{part}." in f".{path}" for part in unused)}
