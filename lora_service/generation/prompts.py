"""The prompts of a request: references expanded, and encoded by the patched text encoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from lora_service.generation.prompt_cache import PromptCache
from lora_service.generation.references import expand_references
from lora_service.generation.request import GenerateRequest
from lora_service.lora.patcher import Patcher, PatchReport
from lora_service.lora.scale import Scale
from lora_service.models.text_encoders import MAX_CHUNKS, PromptEmbeds, TextEncoders


class Prompts(NamedTuple):
    """The two prompts of a request, without references; the fields are named as the inputs."""

    prompt: str
    negative_prompt: str


@dataclass(frozen=True)
class PromptEncoder:
    """Encodes the prompts of a request while its LoRAs are applied.

    Attributes:
        text: the text encoders as the request wants them: the patched tokenizers, its clip skip.
        patcher: has the request's LoRAs applied.
        device: that of the UNet.
        log: called with lines for the person who waits.
        cache: keeps embeds; None: they are made anew.
    """

    text: TextEncoders
    patcher: Patcher
    device: torch.device
    log: Callable[[str], None]
    cache: PromptCache | None = None

    def expand(self, request: GenerateRequest, report: PatchReport, scales: Sequence[Scale]) -> Prompts:
        """Return both prompts with their references expanded; the log gets notes, and warnings of what is cut off.

        Args:
            request: the inputs.
            report: what the patcher found in the request's LoRAs.
            scales: of these LoRAs; one at scale 0 has no subject.

        Raises:
            InputError: a prompt refers to a LoRA that the request does not have.
        """
        subjects = [None if s.is_zero else name for name, s in zip(report.subjects, scales, strict=True)]
        expanded = []
        for field_name in Prompts._fields:
            result = expand_references(getattr(request, field_name), subjects, field_name, report.named_subjects)
            for note in result.notes:
                self.log(note)
            self._warn_of_truncation(field_name, result.prompt)
            expanded.append(result.prompt)
        return Prompts(*expanded)

    def encode(self, prompts: Prompts) -> dict[str, torch.Tensor]:
        """Return both prompt embeds as a pipeline's keyword arguments.

        Both have the chunks of the longer prompt, as the UNet takes them in one batch.
        """
        all_rows = [self.patcher.with_all_rows(prompt) for prompt in prompts]
        chunks = self.text.chunks_for(max(map(self.text.count, all_rows)))
        # One at a time, as the pipelines do: a batch of two differs in the last bits.
        prompt_embeds, negative_embeds = (self._embeds(prompt, chunks) for prompt in all_rows)
        return {**prompt_embeds.as_kwargs(), **negative_embeds.as_kwargs("negative_")}

    def _embeds(self, prompt: str, chunks: int) -> PromptEmbeds:
        def encode() -> PromptEmbeds:
            return self.text.encode(self.text.tokenize([prompt], chunks).to(self.device))

        if self.cache is None:
            return encode()
        return self.cache.get((self.patcher.text_state, self.text.clip_skip, chunks, prompt), encode)

    def _warn_of_truncation(self, name: str, prompt: str) -> None:
        tokens = self.text.count(self.patcher.with_all_rows(prompt))
        limit = MAX_CHUNKS * self.text.chunk_tokens
        if tokens > limit:
            self.log(f"warning: the {name.replace('_', ' ')} has {tokens} tokens and only the first {limit} are used")
