"""A frozen vision-language model as the text encoder, with a fixed template whose beginning is cut off its states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lora_service.models.chat_text_encoder import NAME, ChatTextEncoder
from lora_service.models.text_encoders import PromptEmbeds, TokenIds

PREFIX = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"
DROPPED = 34
"""Tokens of the prefix, whose states are not used."""
_SUFFIX_TOKENS = 5


@dataclass(frozen=True, eq=False)
class TemplateTextEncoder(ChatTextEncoder):
    """The text encoder of Qwen-Image and Krea 2.

    Attributes:
        limit: the positions of the embeds.
        pads_before_suffix: True if the padding stands between the text and the template's end, and has no positions of
            its own; else it follows.
        stacks_layers: True if the embeds of several layers are ``(b, n, layers, width)``.
    """

    limit: int = 512
    pads_before_suffix: bool = False
    stacks_layers: bool = False

    @property
    def positions(self) -> int:
        more = len(self._suffix_ids()) - _SUFFIX_TOKENS if self.pads_before_suffix else 0
        return self.limit + more

    @property
    def chunk_tokens(self) -> int:
        return self.limit - _SUFFIX_TOKENS

    def _suffix_ids(self) -> list[int]:
        ids: list[int] = self._tokenizer(SUFFIX).input_ids
        return ids

    def tokenize(self, texts: Sequence[str], chunks: int = 1) -> TokenIds:
        end = "" if self.pads_before_suffix else SUFFIX
        length = self.limit + DROPPED - (_SUFFIX_TOKENS if self.pads_before_suffix else 0)
        tokens = self._tokenizer(
            [f"{PREFIX}{text}{end}" for text in texts],
            padding="max_length",
            truncation=True,
            max_length=length,
            return_tensors="pt",
        )
        ids, mask = tokens.input_ids, tokens.attention_mask.bool()
        if self.pads_before_suffix:
            suffix = torch.tensor(self._suffix_ids()).expand(len(ids), -1)
            ids, mask = torch.cat([ids, suffix], dim=1), torch.cat([mask, torch.ones_like(suffix, dtype=torch.bool)], 1)
        return TokenIds({NAME: ids}, torch.tensor([not text for text in texts]), {NAME: mask})

    @torch.no_grad()
    def encode(self, ids: TokenIds) -> PromptEmbeds:
        """Encode ``ids``; the embeds have a mask, and zeros where it is False unless layers are stacked."""
        mask = ids.masks[NAME]
        more: dict[str, Any] = {}
        if self.pads_before_suffix:
            places = (mask.long().cumsum(dim=-1) - 1).clamp(min=0)
            more["position_ids"] = places.expand(3, *places.shape)
        with self.on_device():
            output = self._encoder(
                input_ids=ids.by_encoder[NAME], attention_mask=mask, output_hidden_states=True, **more
            )
            layers = [output.hidden_states[layer][:, DROPPED:] for layer in self.layers]
        mask = mask[:, DROPPED:]
        if self.stacks_layers:
            return PromptEmbeds(torch.stack(layers, dim=2), mask=mask)
        return PromptEmbeds(torch.cat(layers, dim=-1) * mask[..., None], mask=mask)

    def arguments(self, embeds: PromptEmbeds, prefix: str = "") -> dict[str, Any]:
        """Return ``prompt_embeds`` and their mask, no longer than the longest prompt where padding follows it."""
        embeds = embeds if self.pads_before_suffix else trimmed(embeds)
        return {
            f"{prefix}prompt_embeds": embeds.states,
            f"{prefix}prompt_embeds_mask": embeds.mask,
            "max_sequence_length": self.limit,  # else the pipelines cut embeds off at 512
        }


def trimmed(embeds: PromptEmbeds) -> PromptEmbeds:
    """Return ``embeds`` without the positions that follow the longest prompt."""
    assert embeds.mask is not None
    return embeds.first(int(embeds.mask.sum(dim=1).max()))
