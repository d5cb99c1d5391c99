"""Patches models with LoRAs, changes only the difference to what is applied now, and puts the originals back.

A LoRA is merged into the weights, so that it costs nothing per step. A merged weight is a second tensor that the
parameter points to; the original is kept untouched, on its own device, so that putting it back is exact and
takes no time. Only weights that are patched exist twice: for the attention and GEGLU layers of SD 1.5 that is
450 MB in fp16. Keeping the originals on the host would save those and cost every restore a trip over the bus.
On a CPU the second tensors stay for the next LoRA: getting fresh memory from the system takes longer than merging.
A GPU's memory is handed back to PyTorch's own cache, which gives it out again at once.

Compiled models may have the addresses of weights in their code, CUDA graphs always do. With ``hold_addresses`` it is
the original that is moved away, once, and what is merged is written where it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer

from lora_service.errors import BaseModelError, LoraFileError, WrongBaseError
from lora_service.lora.base_detection import can_be_for, detect_lora_base, detect_model_base, likelier_base
from lora_service.lora.key_mapping import strip_text_model
from lora_service.lora.merging import ScaledChange, fits, merge
from lora_service.lora.safetensors_header import shortened
from lora_service.lora.scale import Scale, block_of, with_outer_blocks
from lora_service.lora.token_embeddings import TokenEmbeddings, in_plain_words, named_subjects
from lora_service.lora.weights import BACKBONES, BIAS, LoraWeights

ScaledLora = tuple[LoraWeights, Scale]
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
        likelier: the bases that LoRAs are likelier for, though their modules are those of this one too.
    """

    matched: Mapping[str, int] = field(default_factory=dict)
    unmatched: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()
    named_subjects: tuple[Mapping[str, str], ...] = ()
    likelier: tuple[str, ...] = ()

    @property
    def warning(self) -> str | None:
        """What names changes without a weight, and LoRAs that may be another base's; None if there are none."""
        warnings = []
        if self.unmatched:
            total = sum(self.matched.values()) + len(self.unmatched)
            named = ", ".join(shortened(key) for key in self.unmatched[:5]) + (", …" if len(self.unmatched) > 5 else "")
            warnings.append(
                f"{len(self.unmatched)} of {total} changes in the LoRAs fit no weight of this base: {named}"
            )
        warnings += [
            f"a LoRA looks like one for {base}, whose modules this base has too, and is used for this base"
            for base in self.likelier
        ]
        return "; ".join(warnings) or None


TextState = tuple[tuple[int, float, tuple[tuple[str, float], ...]], ...]
"""Serial number, scale and the scales of blocks of each LoRA that reaches the text encoders."""
_Plan = dict[ModuleKey, tuple[ScaledChange, ...]]
"""The changes of every weight that is to be patched."""


class Patcher:
    """Keeps a set of models patched with exactly the LoRAs of the last :meth:`apply`.

    Args:
        components: ``unet`` or ``transformer``, and the text encoders that a LoRA may change: ``text_encoder`` and,
            for SDXL, ``text_encoder_2``. They may be moved and cast while nothing is applied.
        tokenizers: per text encoder, under the encoder's name.
        hold_addresses: write changed weights where the originals were, for compiled models.
    """

    def __init__(
        self,
        components: Mapping[str, nn.Module],
        tokenizers: Mapping[str, CLIPTokenizer],
        *,
        hold_addresses: bool = False,
    ) -> None:
        self._weights: dict[ModuleKey, Tensor] = {
            (component, strip_text_model(path) + ending): parameter
            for component, model in components.items()
            for path, module in model.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d | nn.GroupNorm | nn.LayerNorm) or _is_rms_norm(module)
            for ending, parameter in (("", module.weight), (BIAS, getattr(module, "bias", None)))
            if parameter is not None
        }
        self._row_scales: dict[ModuleKey, Tensor] = {  # of weights in 8-bit floats, as in lora_service.models.float8
            (component, strip_text_model(path)): scale
            for component, model in components.items()
            for path, module in model.named_modules()
            if (scale := getattr(module, "weight_scale", None)) is not None
        }
        self._token_embeddings = TokenEmbeddings(components, tokenizers)
        self._originals: dict[ModuleKey, Tensor] = {}
        self._applied: _Plan = {}
        self._requested: _Plan = {}
        self._scales: tuple[Scale, ...] = ()
        self._text_state: TextState = ()
        self._plain_words: dict[str, str] = {}
        self._hold_addresses = hold_addresses
        self._buffers: dict[ModuleKey, Tensor] = {}
        self._blocks = with_outer_blocks(block_of(component, path) for component, path in self._weights)
        self._base = detect_model_base(*map(self._shapes, ("unet", "text_encoder", "transformer")))

    @property
    def tokenizers(self) -> Mapping[str, CLIPTokenizer]:
        """The current tokenizer per text encoder: the original, or a copy with the LoRAs' tokens."""
        return self._token_embeddings.tokenizers

    @property
    def text_state(self) -> TextState:
        """A key that is equal for equal text encoders, tokens and tokenizers; () for the originals."""
        return self._text_state

    @property
    def token_names(self) -> frozenset[str]:
        """The names of the LoRAs' tokens, as they are written in prompts."""
        return self._token_embeddings.names

    def with_all_rows(self, prompt: str) -> str:
        """Return a prompt in which the word of an embedding of several rows is followed by the names of the others."""
        return self._token_embeddings.with_all_rows(prompt)

    def plain_text(self, prompt: str) -> str:
        """Return a prompt with each LoRA's trigger in place of its tokens, for encoders that do not know these."""
        return in_plain_words(prompt, self._plain_words)

    def apply(self, loras: Sequence[ScaledLora], *, text_only: bool = False) -> PatchReport:
        """Patch the models with these LoRAs at these scales, and no others; their changes are summed.

        A LoRA whose scales are all 0 adds nothing, its tokens neither. One that acts in a share of the steps only is
        in the UNet or transformer while :meth:`move_to` says so; at first that is step 0. After any exception, a
        cancellation too, the models are as if nothing had ever been applied.

        Args:
            text_only: the UNet or transformer has its originals; text encoders and tokens are as otherwise.

        Raises:
            InputError: a scale names a block that these models do not have (``unknown_block``).
            WrongBaseError: a LoRA's shapes do not fit these models.
            LoraFileError: no change of a LoRA has a weight in these models (``no_matching_keys``).
            BaseModelError: a weight is in 8 or 4 bit (``quantized_base``).
        """
        try:
            self._text_state = ()
            active = [(weights, scale) for weights, scale in loras if not scale.is_zero]
            plan, matched, unmatched = self._plan(loras)
            if text_only:
                plan = {key: changes for key, changes in plan.items() if key[0] not in BACKBONES}
            self._requested, self._scales = plan, tuple(scale for _, scale in loras)
            with torch.inference_mode(False), torch.no_grad():
                self._patch(self._plan_at(0.0))
                names = iter(self._token_embeddings.set([weights.embeddings for weights, _ in active]))
            self._text_state = tuple(
                (
                    weights.serial,
                    scale.text_encoder,
                    tuple(named for named in scale.blocks if named[0].startswith("text")),
                )
                for weights, scale in active
            )
            by_lora = [{} if scale.is_zero else next(names) for _, scale in loras]
            self._plain_words = {
                unique[token]: trigger
                for (weights, _), unique in zip(loras, by_lora, strict=True)
                for token, trigger in weights.triggers_of_tokens.items()
                if token in unique
            }
            named = tuple(named_subjects(weights, unique) for (weights, _), unique in zip(loras, by_lora, strict=True))
            bases = (likelier_base(weights, self._base) for weights, _ in active)
            likelier = tuple(dict.fromkeys(base for base in bases if base))
            return PatchReport(matched, unmatched, tuple(by_name["1"] for by_name in named), named, likelier)
        except BaseException:
            self.restore()
            raise

    @property
    def is_constant(self) -> bool:
        """True if all applied LoRAs act in all steps, so that :meth:`move_to` changes nothing."""
        return all(scale.is_constant for scale in self._scales)

    def move_to(self, progress: float) -> None:
        """Patch the UNet or transformer with those of the applied LoRAs that act in the next step; the tokens stay.

        It takes time only where a LoRA begins or ends to act: as much as merging the weights that it changes.

        Args:
            progress: the share of all steps that were taken, from 0 to 1.
        """
        if not self.is_constant:
            with torch.inference_mode(False), torch.no_grad():
                self._patch(self._plan_at(progress))

    def restore(self) -> None:
        """Put the exact originals back. Safe to call again if it was interrupted."""
        self._requested, self._scales, self._text_state, self._plain_words = {}, (), (), {}
        with torch.inference_mode(False), torch.no_grad():
            for key in list(self._originals):
                self._restore_weight(key)
        self._token_embeddings.restore()

    def _plan_at(self, progress: float) -> _Plan:
        """Return the changes of the LoRAs that act when ``progress`` of the steps were taken."""
        if self.is_constant:
            return self._requested
        acting = {number for number, scale in enumerate(self._scales) if scale.acts_at(progress)}
        plan = {
            key: tuple(change for change in changes if key[0] not in BACKBONES or change.lora in acting)
            for key, changes in self._requested.items()
        }
        return {key: changes for key, changes in plan.items() if changes}

    def _plan(self, loras: Sequence[ScaledLora]) -> tuple[_Plan, dict[str, int], tuple[str, ...]]:
        """Return the changes per weight, the number of matches per component, and the changes without a weight."""
        changes: dict[ModuleKey, list[ScaledChange]] = {}
        matched: dict[str, int] = {}
        unmatched: list[str] = []
        for number, (weights, scale) in enumerate(loras):
            scale.check_blocks(self._blocks)
            missing = self._check(weights)
            unmatched += [f"{component}.{path}" for component, path in missing]
            for component, path, change in weights:
                if (component, path) in missing:
                    continue
                matched[component] = matched.get(component, 0) + 1
                factor = scale.of(component, path)
                if factor != 0:
                    changes.setdefault((component, path), []).append(ScaledChange(change, factor, number))
        return {key: tuple(scaled) for key, scaled in changes.items()}, matched, tuple(unmatched)

    def _check(self, weights: LoraWeights) -> set[ModuleKey]:
        """Return the modules of a LoRA that the models do not have; raise if it is for another base."""
        made_for = detect_lora_base(weights)
        fits_base = not made_for or not self._base or can_be_for(weights, self._base)
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
            elif not fits(change, tuple(weight.shape)):
                raise WrongBaseError(
                    f"The LoRA was made for {made_for or 'another base'} and not for {self._base or 'this one'}: "
                    f"{component}.{path} is of the shape {change.shape} there and of {tuple(weight.shape)} here."
                )
        total = sum(map(len, weights.layers.values()))
        # Transformers of different families have modules of the same names and shapes.
        if not fits_base and (missing or "transformer" in weights.layers):
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

    def _patch_weight(self, key: ModuleKey, changes: tuple[ScaledChange, ...]) -> None:
        weight = self._weights[key]
        # Each line leaves a state that restore() mends: an original is stored before the parameter changes.
        if key not in self._originals:
            self._originals[key] = self._copy(key) if self._hold_addresses else weight.data
        original = self._originals[key]
        self._applied.pop(key, None)
        if self._hold_addresses:
            merge(original, changes, weight.data)
        else:
            weight.data = merge(self._unscaled(key, original), changes, self._buffer(key, original))
        self._applied[key] = changes

    def _copy(self, key: ModuleKey) -> Tensor:
        return self._buffer(key, self._weights[key].data).copy_(self._weights[key].data)

    def _unscaled(self, key: ModuleKey, original: Tensor) -> Tensor:
        """Return an original as it counts: one in 8-bit floats is multiplied by its scales."""
        scale = self._row_scales.get(key)
        return original if scale is None else original.float() * scale.float()

    def _buffer(self, key: ModuleKey, original: Tensor) -> Tensor:
        buffer = self._buffers.get(key)
        dtype = self._row_scales.get(key, original).dtype
        if buffer is None or (buffer.device, buffer.dtype) != (original.device, dtype):
            buffer = self._buffers[key] = torch.empty_like(original, dtype=dtype)
        return buffer

    def _restore_weight(self, key: ModuleKey) -> None:
        weight, original = self._weights[key], self._originals[key]
        self._applied.pop(key, None)
        if self._hold_addresses:
            weight.data.copy_(original)
        else:
            dtype = original.dtype if key in self._row_scales else weight.dtype
            weight.data = original.to(weight.device, dtype)
        if original.device.type != "cpu":
            self._buffers.pop(key, None)
        del self._originals[key]

    def _shapes(self, component: str) -> Iterable[tuple[str, tuple[int, ...]]]:
        return [(path, tuple(weight.shape)) for (name, path), weight in self._weights.items() if name == component]


def _is_rms_norm(module: nn.Module) -> bool:
    """Return True for PyTorch's, diffusers' and the families' own classes of RMS norms."""
    return type(module).__name__.endswith("RMSNorm")
