"""Patches models with LoRAs, changes only the difference to what is applied now, and puts the originals back.

A LoRA is merged into the weights, so that it costs nothing per step. A merged weight is a second tensor that the
parameter points to; the original is kept untouched, on its own device, so that putting it back is exact and
takes no time. Only weights that are patched exist twice: for the attention and GEGLU layers of SD 1.5 that is
450 MB in fp16. Keeping the originals on the host would save those and cost every restore a trip over the bus.
On a CPU the second tensors stay for the next LoRA: getting fresh memory from the system takes longer than merging.
A GPU's memory is handed back to PyTorch's own cache, which gives it out again at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer

from lora_service.errors import BaseModelError, LoraFileError, WrongBaseError
from lora_service.lora.base_detection import detect_lora_base, detect_model_base
from lora_service.lora.key_mapping import strip_text_model
from lora_service.lora.lycoris import DoraLayer
from lora_service.lora.safetensors_header import shortened
from lora_service.lora.scale import Scale
from lora_service.lora.token_embeddings import TokenEmbeddings, as_text
from lora_service.lora.weights import BIAS, LoraLayer, LoraWeights, WeightChange

ModuleKey = tuple[str, str]
"""(component, module path without ``text_model.``) of the weight of a linear layer, convolution or norm; of its bias,
if the path ends in ``.bias``."""


@dataclass(frozen=True)
class PatchReport:
    """The matches between the LoRAs and the models.

    Attributes:
        matched: component -> number of changes that have a weight, over all LoRAs.
        unmatched: ``component.path`` of changes that the models have no weight for.
        subjects: for each LoRA, the prompt text of its first subject: its tokens as the tokenizers know them now, else
            its trigger; "" if it has neither.
        named_subjects: for each LoRA, the same for all of its subjects, by their numbers from "1" on, their triggers
            and the first words of these, in small letters.
    """

    matched: Mapping[str, int] = field(default_factory=dict)
    unmatched: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()
    named_subjects: tuple[Mapping[str, str], ...] = ()

    @property
    def warning(self) -> str | None:
        """A sentence that names changes without a weight; None if there are none."""
        if not self.unmatched:
            return None
        total = sum(self.matched.values()) + len(self.unmatched)
        named = ", ".join(shortened(key) for key in self.unmatched[:5]) + (", …" if len(self.unmatched) > 5 else "")
        return f"{len(self.unmatched)} of {total} changes in the LoRAs fit no weight of this base: {named}"


@dataclass(frozen=True)
class _ScaledChange:
    """One LoRA's change of one weight at a scale; equal only to the same object's at the same scale."""

    change: WeightChange
    scale: float


_Plan = dict[ModuleKey, tuple[_ScaledChange, ...]]
"""The changes of every weight that is to be patched."""


class Patcher:
    """Keeps a set of models patched with exactly the LoRAs of the last :meth:`apply`.

    Args:
        components: ``unet``, ``text_encoder`` and, for SDXL, ``text_encoder_2``. They may be moved and cast while
            nothing is applied.
        tokenizers: per text encoder, under the encoder's name.
    """

    def __init__(self, components: Mapping[str, nn.Module], tokenizers: Mapping[str, CLIPTokenizer]) -> None:
        self._weights: dict[ModuleKey, Tensor] = {
            (component, strip_text_model(path) + ending): parameter
            for component, model in components.items()
            for path, module in model.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d | nn.GroupNorm | nn.LayerNorm)
            for ending, parameter in (("", module.weight), (BIAS, module.bias))
            if parameter is not None
        }
        self._token_embeddings = TokenEmbeddings(components, tokenizers)
        self._originals: dict[ModuleKey, Tensor] = {}
        self._applied: _Plan = {}
        self._buffers: dict[ModuleKey, Tensor] = {}
        self._base = detect_model_base(self._shapes("unet"), self._shapes("text_encoder"))

    @property
    def tokenizers(self) -> Mapping[str, CLIPTokenizer]:
        """The current tokenizer per text encoder: the original, or a copy with the LoRAs' tokens."""
        return self._token_embeddings.tokenizers

    @property
    def token_names(self) -> frozenset[str]:
        """The names of the LoRAs' tokens, as they are written in prompts."""
        return self._token_embeddings.names

    def with_all_rows(self, prompt: str) -> str:
        """Return a prompt in which the word of an embedding of several rows is followed by the names of the others."""
        return self._token_embeddings.with_all_rows(prompt)

    def apply(self, loras: Sequence[tuple[LoraWeights, Scale]]) -> PatchReport:
        """Patch the models with these LoRAs at these scales, and no others; their changes are summed.

        A LoRA whose scales are both 0 adds nothing, its tokens neither. After any exception, a cancellation too,
        the models are as if nothing had ever been applied.

        Raises:
            WrongBaseError: a LoRA's shapes do not fit these models.
            LoraFileError: no change of a LoRA has a weight in these models (``no_matching_keys``).
        BaseModelError: a weight is in 8 or 4 bit (``quantized_base``).
        """
        try:
            active = [(weights, scale) for weights, scale in loras if not scale.is_zero]
            plan, matched, unmatched = self._plan(loras)
            with torch.inference_mode(False), torch.no_grad():
                self._patch(plan)
                names = iter(self._token_embeddings.set([weights.embeddings for weights, _ in active]))
            named = tuple(_named_subjects(weights, {} if scale.is_zero else next(names)) for weights, scale in loras)
            return PatchReport(matched, unmatched, tuple(by_name["1"] for by_name in named), named)
        except BaseException:
            self.restore()
            raise

    def restore(self) -> None:
        """Put the exact originals back. Safe to call again if it was interrupted."""
        for key in list(self._originals):
            self._restore_weight(key)
        self._token_embeddings.restore()

    def _plan(self, loras: Sequence[tuple[LoraWeights, Scale]]) -> tuple[_Plan, dict[str, int], tuple[str, ...]]:
        """Return the changes per weight, the number of matches per component, and the changes without a weight."""
        changes: dict[ModuleKey, list[_ScaledChange]] = {}
        matched: dict[str, int] = {}
        unmatched: list[str] = []
        for weights, scale in loras:
            missing = self._check(weights)
            unmatched += [f"{component}.{path}" for component, path in missing]
            for component, path, change in weights:
                if (component, path) in missing:
                    continue
                matched[component] = matched.get(component, 0) + 1
                if scale.of(component) != 0:
                    changes.setdefault((component, path), []).append(_ScaledChange(change, scale.of(component)))
        return {key: tuple(scaled) for key, scaled in changes.items()}, matched, tuple(unmatched)

    def _check(self, weights: LoraWeights) -> set[ModuleKey]:
        """Return the modules of a LoRA that the models do not have; raise if it is for another base."""
        made_for = detect_lora_base(weights)
        missing: set[ModuleKey] = set()
        for component, path, change in weights:
            weight = self._weights.get((component, path))
            if weight is None:
                missing.add((component, path))
            elif not weight.is_floating_point():
                raise BaseModelError(
                    "A LoRA cannot be merged into weights in 8 or 4 bit: BASE_QUANTIZATION must be none to draw.",
                    code="quantized_base",
                    field="BASE_QUANTIZATION",
                )
            elif not _fits(change, tuple(weight.shape)):
                raise WrongBaseError(
                    f"The LoRA was made for {made_for or 'another base'} and not for {self._base or 'this one'}: "
                    f"{component}.{path} is of the shape {change.shape} there and of {tuple(weight.shape)} here."
                )
        total = sum(map(len, weights.layers.values()))
        if missing and made_for and self._base and made_for != self._base:
            raise WrongBaseError(f"The LoRA was made for {made_for} and does not fit {self._base}.")
        if len(missing) == total and (total or not weights.embeddings):
            named = ", ".join(sorted(shortened(".".join(key)) for key in missing)[:3]) or "none"
            raise LoraFileError(
                f"None of the LoRA's {total} changes fits a weight of {self._base or 'this base'} ({named}).",
                code="no_matching_keys",
            )
        self._token_embeddings.check(weights.embeddings)
        return missing

    def _patch(self, plan: _Plan) -> None:
        for key in [key for key in self._applied if key not in plan]:
            self._restore_weight(key)
        for key, changes in plan.items():
            if self._applied.get(key) != changes:
                self._patch_weight(key, changes)

    def _patch_weight(self, key: ModuleKey, changes: tuple[_ScaledChange, ...]) -> None:
        weight = self._weights[key]
        # Each line leaves a state that restore() mends: an original is stored before the parameter points elsewhere.
        original = self._originals.setdefault(key, weight.data)
        self._applied.pop(key, None)
        weight.data = merge(original, changes, self._buffer(key, original))
        self._applied[key] = changes

    def _buffer(self, key: ModuleKey, original: Tensor) -> Tensor:
        buffer = self._buffers.get(key)
        if buffer is None or (buffer.device, buffer.dtype) != (original.device, original.dtype):
            buffer = self._buffers[key] = torch.empty_like(original)
        return buffer

    def _restore_weight(self, key: ModuleKey) -> None:
        weight, original = self._weights[key], self._originals[key]
        weight.data = original.to(weight.device, weight.dtype)
        self._applied.pop(key, None)
        if original.device.type != "cpu":
            self._buffers.pop(key, None)
        del self._originals[key]

    def _shapes(self, component: str) -> Iterable[tuple[str, tuple[int, ...]]]:
        return [(path, tuple(weight.shape)) for (name, path), weight in self._weights.items() if name == component]


def merge(weight: Tensor, changes: Sequence[_ScaledChange], out: Tensor) -> Tensor:
    """Write ``weight + Σ scale · delta`` to ``out``, summed in fp32 and cast once to its dtype; return ``out``."""
    in_place = out.dtype == torch.float32 and out.is_contiguous()
    total = out if in_place else torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
    augend = weight.float()
    for scaled in changes:
        change = scaled.change
        if isinstance(change, LoraLayer):
            # Product and sum in one pass: the delta itself is never written to memory.
            up, down = change.factors(weight.device)
            factor = scaled.scale * change.alpha / change.rank
            torch.addmm(augend.flatten(1), up, down, alpha=factor, out=total.flatten(1))
        else:
            torch.add(augend, change.delta(weight), alpha=scaled.scale, out=total)
        augend = total
    return out if in_place else out.copy_(total)


def _fits(change: WeightChange, weight: tuple[int, ...]) -> bool:
    """Return True if shapes agree; a 1 × 1 convolution is a linear layer, and a change may come flattened."""
    if isinstance(change, DoraLayer) and not (len(weight) > 1 and change.fits(weight)):
        return False
    shape = change.shape
    if len(shape) == len(weight):
        return shape == weight
    return shape[0] == weight[0] and math.prod(shape) == math.prod(weight)


def _named_subjects(weights: LoraWeights, names: Mapping[str, str]) -> dict[str, str]:
    """Return number, trigger, and first word of the trigger of each subject -> its text in prompts.

    A word that several subjects share is the first one's.
    """
    texts = [
        as_text([names.get(token, token) for token in subject.tokens]) or subject.trigger
        for subject in weights.subjects
    ]
    by_name = {str(number): text for number, text in enumerate(texts, start=1)}
    triggers = [subject.trigger.lower() for subject in weights.subjects]
    for keys in (triggers, [trigger.split(" ")[0] for trigger in triggers]):
        for key, text in zip(keys, texts, strict=True):
            by_name.setdefault(key, text)
    return by_name
