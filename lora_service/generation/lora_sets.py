"""LoRAs that images have together: applied, and the prompts of these images encoded with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from lora_service.generation.clip_skip import choose_clip_skip
from lora_service.generation.prompt_cache import PromptCache
from lora_service.generation.prompt_embeddings import report_embeddings
from lora_service.generation.prompts import EncodedPrompts, PromptEncoder
from lora_service.generation.request import GenerateRequest
from lora_service.lora.patcher import Patcher, ScaledLora
from lora_service.models.diffusion_base import DiffusionBase

Log = Callable[[str], None]


@dataclass(frozen=True)
class LoraSet:
    """LoRAs that images have together.

    Attributes:
        loras: all of the request, or one where each has images for itself.
        encoded: the prompts of these images.
        settings: of these images alone, for their files' metadata.
    """

    loras: list[ScaledLora]
    encoded: EncodedPrompts
    settings: dict[str, Any]


@dataclass(frozen=True)
class LoraSetEncoder:
    """Makes sets of a request's LoRAs.

    Attributes:
        base: the base model.
        patcher: of its models.
        prompt_cache: keeps prompt embeds; None: they are made anew.
    """

    base: DiffusionBase
    patcher: Patcher
    prompt_cache: PromptCache | None = None

    def apply(
        self,
        request: GenerateRequest,
        loras: list[ScaledLora],
        embeddings: Sequence[ScaledLora],
        log: Log,
        own: int | None,
    ) -> LoraSet:
        """Apply LoRAs and encode the prompts with them.

        Args:
            own: the number of the only LoRA, where each has images for itself; the UNet has the originals then.
        """
        log = log if own is None else partial(_log_of_lora, log, own)
        full_report = self.patcher.apply([*loras, *embeddings], text_only=own is not None)
        report = report_embeddings(full_report, len(loras), request, log)
        if report.warning:
            log(f"warning: {report.warning}")
        clip_skip = choose_clip_skip(request, loras, self.base, log)
        text = self.base.text.with_tokenizers(self.patcher.tokenizers, self.patcher.plain_text)
        text = text.with_clip_skip(clip_skip)
        encoder = PromptEncoder(text, self.patcher, self.base.device, log, self.prompt_cache)
        prompts = encoder.expand(request, report, [scale for _, scale in loras], own)
        with torch.inference_mode():
            encoded = encoder.encode(prompts)
        settings: dict[str, Any] = prompts._asdict()
        if own is not None:
            settings["lora"] = own
        if clip_skip is not None:
            settings["clip_skip"] = clip_skip
        scales = request.lora_scales.split("|")
        scale = request.lora_scales if own is None or len(scales) == 1 else scales[own - 1]
        # At scale 0 a LoRA changes nothing, and the file is the bare base's, byte for byte.
        settings["lora_scales"] = "" if all(scale.is_zero for _, scale in loras) else scale
        return LoraSet(loras, encoded, settings)


def _log_of_lora(log: Log, number: int, line: str) -> None:
    """Log a line that is about one of several LoRAs."""
    start = "warning: " if line.startswith("warning: ") else ""
    rest, name = line.removeprefix(start), f"LoRA {number}"
    log(f"{start}{rest}" if rest.startswith(f"{name} ") else f"{start}{name}: {rest}")
