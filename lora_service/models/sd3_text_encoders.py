"""Stable Diffusion 3's text encoders: two of CLIP's, which learn, and a frozen T5 beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from lora_service.models.clip_text_encoders import ClipTextEncoders
from lora_service.models.text_encoders import PromptEmbeds, TextEncoders, TokenIds

T5 = "text_encoder_3"
T5_POSITIONS = 256
"""Tokens that T5 reads of a text, as diffusers' pipeline has it and the models were trained."""
_TEXTS_AT_ONCE = 16


@dataclass(frozen=True, eq=False)
class Sd3TextEncoders(TextEncoders):
    """CLIP's states, padded to the width of T5's, and T5's behind them; pooled are both of CLIP's projections.

    (https://arxiv.org/abs/2403.03206, section B.) Without T5 its states are zeros, as the models were trained for a
    share of the captions. CLIP reads the first 75 tokens of a text and T5 the first 255. New tokens are CLIP's alone;
    T5 reads :attr:`plain_text`, in which a word stands for them.

    Attributes:
        state_width: the width of the states.
    """

    state_width: int = 4096

    @property
    def clip(self) -> ClipTextEncoders:
        """CLIP's encoders alone, with the states that are read and both pooled embeddings."""
        encoders, tokenizers = (
            {name: each for name, each in all_of_them.items() if name != T5}
            for all_of_them in (self.encoders, self.tokenizers)
        )
        return ClipTextEncoders(encoders, tokenizers, self.clip_skip, self.on_device, pools_all=True)

    @property
    def learning(self) -> Mapping[str, Any]:
        return self.clip.encoders

    @property
    def companions(self) -> Mapping[str, Any]:
        return {T5: self.encoders[T5]} if T5 in self.encoders else {}

    @property
    def width(self) -> int:
        return self.state_width

    @property
    def positions(self) -> int:
        return self.clip.positions + T5_POSITIONS

    def positions_of(self, encoder: str) -> int:
        return T5_POSITIONS if encoder == T5 else self.clip.positions

    @property
    def chunk_tokens(self) -> int:
        return T5_POSITIONS - 1 if self.companions else self.clip.chunk_tokens

    def count(self, text: str) -> int:
        """Return T5's tokens, where there is T5: what CLIP does not read any more, T5 does."""
        return len(self.tokenizers[T5].tokenize(self.plain_text(text))) if self.companions else self.clip.count(text)

    def unused_layers(self, name: str) -> tuple[str, ...]:
        return self.clip.unused_layers(name)

    def with_clip_skip(self, clip_skip: int | None) -> Self:
        return replace(self, clip_skip=self.clip.with_clip_skip(clip_skip).clip_skip)

    def tokenize(self, texts: Sequence[str], chunks: int = 1) -> TokenIds:
        ids = self.clip.tokenize(texts)
        if not self.companions:
            return ids
        plain = [self.plain_text(text) for text in texts]
        tokens = self.tokenizers[T5](
            plain, padding="max_length", truncation=True, max_length=T5_POSITIONS, return_tensors="pt"
        )
        return replace(ids, by_encoder={**ids.by_encoder, T5: tokens.input_ids})

    @torch.no_grad()
    def read_by_companions(self, ids: TokenIds) -> TokenIds:
        if not self.companions:
            return ids
        with self.companions_on_device():
            parts = [self.encoders[T5](part.by_encoder[T5])[0] for part in ids.split(_TEXTS_AT_ONCE)]
        return replace(ids, states={T5: torch.cat(parts)})

    def encode(self, ids: TokenIds) -> PromptEmbeds:
        by_clip = self.clip.encode(ids)
        states = pad(by_clip.states, (0, self.width - by_clip.states.shape[-1]))
        return PromptEmbeds(torch.cat([states, self._t5_states(ids).to(states)], dim=1), by_clip.pooled)

    def _t5_states(self, ids: TokenIds) -> Tensor:
        if not self.companions:
            return torch.zeros(len(ids), T5_POSITIONS, self.width)
        return (ids if T5 in ids.states else self.read_by_companions(ids)).states[T5]
