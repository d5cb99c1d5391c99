"""The prompts of a request: references expanded, and encoded by the patched text encoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from lora_service.generation.prompt_cache import PromptCache
from lora_service.generation.prompt_syntax import ParsedPrompt, WeightedText, escaped, parse_prompt
from lora_service.generation.prompt_weights import WeightedEncoder
from lora_service.generation.references import expand_references
from lora_service.generation.request import GenerateRequest
from lora_service.lora.patcher import Patcher, PatchReport
from lora_service.lora.scale import Scale
from lora_service.models.text_encoders import PromptEmbeds, TextEncoders


class Prompts(NamedTuple):
    """The two prompts of a request, without references but with weights; the fields are named as the inputs."""

    prompt: str
    negative_prompt: str


@dataclass(frozen=True)
class EncodedPrompts:
    """Both prompts of an image, expanded, and their embeds."""

    prompts: Prompts
    embeds: PromptEmbeds
    negative_embeds: PromptEmbeds

    @property
    def shapes(self) -> tuple[torch.Size, torch.Size]:
        """Those of the states; prompts of equal ones go into a batch as they are."""
        return self.embeds.states.shape, self.negative_embeds.states.shape


def prompt_arguments(text: TextEncoders, encoded: Sequence[EncodedPrompts]) -> dict[str, Any]:
    """Return prompts of the same :attr:`EncodedPrompts.shapes` as a pipeline's keyword arguments."""
    prompts, negatives = (
        parts[0] if len(parts) == 1 else PromptEmbeds.concatenate(parts)
        for parts in ([each.embeds for each in encoded], [each.negative_embeds for each in encoded])
    )
    return {**text.arguments(prompts), **text.arguments(negatives, "negative_")}


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

    def expand(
        self, request: GenerateRequest, report: PatchReport, scales: Sequence[Scale], own: int | None = None
    ) -> Prompts:
        """Return both prompts with their references expanded; the log gets notes, and warnings of what is cut off.

        Args:
            request: the inputs.
            report: what the patcher found in the request's LoRAs.
            scales: of these LoRAs; one at scale 0 has no subject.
            own: the number of the only LoRA in the request, where each of its LoRAs has images for itself.

        Raises:
            InputError: a prompt refers to a LoRA that the request does not have, or has a weight out of range.
        """
        # A trigger with brackets, such as "jinx (arcane)", is no weight.
        escape = escaped if self.text.reads_weights else str
        subjects = [
            None if scale.is_zero else escape(name) for name, scale in zip(report.subjects, scales, strict=True)
        ]
        named = [{key: escape(text) for key, text in names.items()} for names in report.named_subjects]
        expanded = []
        for field_name in Prompts._fields:
            result = expand_references(getattr(request, field_name), subjects, field_name, named, own)
            parsed = self._parse(result.prompt, field_name)
            for note in (*result.notes, *parsed.notes):
                self.log(note)
            self._warn_of_truncation(field_name, parsed)
            expanded.append(result.prompt)
        return Prompts(*expanded)

    def encode(self, prompts: Prompts) -> EncodedPrompts:
        """Encode both prompts of an image.

        Both have the chunks of the longer prompt, as the UNet takes them in one batch.
        """
        encoder = self._encoder
        parsed = [self._parse(prompt, name) for name, prompt in zip(Prompts._fields, prompts, strict=True)]
        chunks = max(map(encoder.chunks_for, parsed))
        # One at a time, as the pipelines do: a batch of two differs in the last bits.
        prompt_embeds, negative_embeds = (
            self._embeds(prompt, each, chunks) for prompt, each in zip(prompts, parsed, strict=True)
        )
        return EncodedPrompts(prompts, prompt_embeds, negative_embeds)

    def _embeds(self, prompt: str, parsed: ParsedPrompt, chunks: int) -> PromptEmbeds:
        def encode() -> PromptEmbeds:
            return self._encoder.encode(parsed, chunks)

        if self.cache is None:
            return encode()
        return self.cache.get((self.patcher.text_state, self.text.clip_skip, chunks, prompt), encode)

    @property
    def _encoder(self) -> WeightedEncoder:
        return WeightedEncoder(self.text, self.patcher.with_all_rows, self.device)

    def _parse(self, prompt: str, field_name: str) -> ParsedPrompt:
        if not self.text.reads_weights:  # a language model reads brackets as any text
            return ParsedPrompt(((WeightedText(prompt),),))
        return parse_prompt(prompt, field_name, self.patcher.token_names)

    def _warn_of_truncation(self, name: str, prompt: ParsedPrompt) -> None:
        encoder = self._encoder
        if encoder.is_cut(prompt):
            limit = encoder.limit(prompt)
            read = f"{limit} chunks" if len(prompt.parts) > 1 else f"{limit * self.text.chunk_tokens}"
            self.log(
                f"warning: the {name.replace('_', ' ')} has {encoder.count(prompt)} tokens and only the first "
                f"{read} are used"
            )
