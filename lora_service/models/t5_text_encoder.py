"""A frozen T5 as the text encoder, with or without the pooled states of a frozen CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

from lora_service.errors import InputError
from lora_service.models.text_encoders import PromptEmbeds, TextEncoders, TokenIds

POSITIONS = 512
"""Tokens of a text, as diffusers' pipelines pad and truncate it."""
CLIP_POSITIONS = 77


@dataclass(frozen=True, eq=False)
class T5TextEncoder(TextEncoders):
    """T5's last hidden states; nothing in it learns, and it knows no new tokens.

    Attributes:
        name: of T5 among the encoders; the other one, if any, is CLIP.
        masks_padding: True if padding is left out of T5's attention, and all of it but its first token of the embeds'.
    """

    name: str = "text_encoder"
    masks_padding: bool = False

    @property
    def width(self) -> int:
        return int(self.encoders[self.name].config.d_model)

    @property
    def positions(self) -> int:
        return POSITIONS

    @property
    def chunk_tokens(self) -> int:
        return POSITIONS - 1  # an end, and no start

    def count(self, text: str) -> int:
        """Return T5's tokens: of CLIP's, whose states are pooled, those beyond 77 are few of the whole."""
        return len(self.tokenizers[self.name].tokenize(text))

    def tokenize(self, texts: Sequence[str], chunks: int = 1) -> TokenIds:
        ids, masks = {}, {}
        for name, tokenizer in self.tokenizers.items():
            length = POSITIONS if name == self.name else CLIP_POSITIONS
            tokens = tokenizer(
                list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
            )
            ids[name], masks[name] = tokens.input_ids, tokens.attention_mask.bool()
        return TokenIds(ids, torch.tensor([not text for text in texts]), masks)

    @torch.no_grad()
    def encode(self, ids: TokenIds) -> PromptEmbeds:
        mask = ids.masks[self.name] if self.masks_padding else None
        with self.on_device():
            states = self.encoders[self.name](ids.by_encoder[self.name], attention_mask=mask)[0]
            pooled = [
                encoder(ids.by_encoder[name]).pooler_output
                for name, encoder in self.encoders.items()
                if name != self.name
            ]
        if mask is not None:
            lengths = mask.sum(dim=1, keepdim=True)
            mask = torch.arange(mask.shape[1], device=mask.device) <= lengths
        return PromptEmbeds(states, pooled[0] if pooled else None, mask)

    def with_clip_skip(self, clip_skip: int | None) -> Self:
        if clip_skip is not None:
            expected = "left out: this base reads T5, and of CLIP the pooled states alone"
            raise InputError("clip_skip", clip_skip, expected, code="no_clip")
        return self

    def arguments(self, embeds: PromptEmbeds, prefix: str = "") -> dict[str, Any]:
        arguments: dict[str, Any] = embeds.as_kwargs(prefix)
        if embeds.mask is not None:
            arguments[f"{prefix}prompt_attention_mask"] = embeds.mask.to(embeds.states.dtype)
        return arguments
