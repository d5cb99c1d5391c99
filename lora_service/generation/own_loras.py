"""Images that each have a LoRA for themselves, drawn side by side in one batch where that is possible."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lora_service.generation.denoising import DenoisingBatch, DenoisingCallback
from lora_service.generation.image_memory import loras_at_once
from lora_service.generation.prompts import EncodedPrompts
from lora_service.generation.sizes import Size
from lora_service.lora.patcher import ScaledLora
from lora_service.lora.side_by_side import LorasSideBySide, can_be_beside, stacked_bytes
from lora_service.models.diffusion_base import DiffusionBase

Log = Callable[[str], None]


class SideBySide(DenoisingCallback):
    """Has LoRAs act on their own images while a batch is denoised.

    Args:
        base: the base model, whose backbone has its own weights.
        loras: those of which :func:`drawn_together` says so.
        numbers: theirs in the request, from 0 on.
    """

    def __init__(self, base: DiffusionBase, loras: Sequence[ScaledLora], numbers: Sequence[int]) -> None:
        self._loras = LorasSideBySide(base.backbone, base.family.backbone, loras, base.device, base.dtype)
        self._places = {number: place for place, number in enumerate(numbers)}

    @property
    def bytes_each(self) -> int:
        """What an image's LoRA takes in a batch, in which guidance may have each image twice."""
        return 2 * self._loras.bytes_each

    def on_batch_start(self, batch: DenoisingBatch) -> None:
        self._loras.install([self._places[picture.lora] for picture in batch.pictures])

    def on_batch_end(self, batch: DenoisingBatch) -> None:
        self._loras.remove()


def drawn_together(
    base: DiffusionBase, loras: Sequence[ScaledLora], encoded: Sequence[EncodedPrompts], size: Size, log: Log
) -> list[list[int]]:
    """Return the numbers of ``loras``, from 0 on, by what is drawn in the same batches.

    A LoRA is by itself, and merged into the weights, if it changes other things than products of low rank or acts in a
    share of the steps, if no other prompt has as many chunks as its own, if memory is short, and on a compiled base,
    whose programs know nothing of layers beside the weights.

    Args:
        encoded: the prompts of each.
    """
    backbone, component = base.backbone, base.family.backbone
    by_shapes: dict[object, list[int]] = {}
    alone: list[int] = []
    for number, lora in enumerate(loras):
        if base.compiled is None and can_be_beside(lora, component, backbone, base.family.ragged):
            by_shapes.setdefault(encoded[number].shapes, []).append(number)
        else:
            alone.append(number)
    groups = []
    for numbers in by_shapes.values():
        of_group = [loras[number] for number in numbers]
        each = stacked_bytes(of_group, component, base.dtype) / len(of_group)
        at_once = loras_at_once(base, size, each, len(numbers))
        groups += [numbers[start : start + at_once] for start in range(0, len(numbers), at_once)]
    groups += [[number] for number in alone]
    if len(loras) > 1:
        together = [group for group in groups if len(group) > 1]
        said = [f"LoRAs {_listed(group)} are drawn side by side" for group in together]
        rest = [number for group in groups if len(group) == 1 for number in group]
        said += [f"LoRA{'s' if len(rest) > 1 else ''} {_listed(rest)} one after another"] if rest else []
        log("; ".join(said))
    return groups


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(str(number + 1) for number in sorted(numbers))
