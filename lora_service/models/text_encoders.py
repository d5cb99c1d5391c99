"""The text side of a base: one CLIP text encoder or Stable Diffusion XL's two, used alike by training and drawing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

TextEncoder: TypeAlias = CLIPTextModel | CLIPTextModelWithProjection


@dataclass(frozen=True, eq=False)
class TokenIds:
    """Texts as the text encoders read them.

    Attributes:
        by_encoder: text encoder -> token ids ``(b, n)``.
        blank: ``(b,)``, which texts are empty.
    """

    by_encoder: Mapping[str, Tensor]
    blank: Tensor

    def __len__(self) -> int:
        return len(self.blank)

    def __getitem__(self, rows: Tensor | slice) -> TokenIds:
        """The texts ``rows``, in that order."""
        return TokenIds({name: ids[rows] for name, ids in self.by_encoder.items()}, self.blank[rows])

    def split(self, size: int) -> Iterator[TokenIds]:
        """All texts, ``size`` at a time."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def to(self, device: torch.device) -> TokenIds:
        return TokenIds({name: ids.to(device) for name, ids in self.by_encoder.items()}, self.blank.to(device))


@dataclass(frozen=True, eq=False)
class PromptEmbeds:
    """What a UNet is told of texts: ``states`` ``(b, n, width)`` and, on Stable Diffusion XL, ``pooled`` ``(b, w)``."""

    states: Tensor
    pooled: Tensor | None = None

    def __getitem__(self, rows: Tensor) -> PromptEmbeds:
        return PromptEmbeds(self.states[rows], None if self.pooled is None else self.pooled[rows])

    @staticmethod
    def joined(parts: Sequence[PromptEmbeds]) -> PromptEmbeds:
        """The texts of ``parts``, one after another."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return PromptEmbeds(torch.cat([part.states for part in parts]), torch.cat(pooled) if pooled else None)

    def as_arguments(self, prefix: str = "") -> dict[str, Tensor]:
        """It by the names that diffusers' pipelines give it; ``prefix`` is ``negative_`` or nothing."""
        named = {f"{prefix}prompt_embeds": self.states}
        return named if self.pooled is None else {**named, f"{prefix}pooled_prompt_embeds": self.pooled}


@dataclass(frozen=True, eq=False)
class TextEncoders:
    """Text encoders with their tokenizers, by the encoders' names in LoRA files, ``text_encoder`` first.

    One encoder (Stable Diffusion 1.x and 2.x) gives its last hidden states. Two (XL) give the hidden states before
    the last layer side by side, and the second one's projection of the prompt's end as pooled embedding
    (https://arxiv.org/abs/2307.01952, section 2.1).

    ``blank_is_zero``: the base was taught "no text" as zeros, not as the embedding of "" (diffusers'
    ``force_zeros_for_empty_prompt``).
    """

    encoders: Mapping[str, TextEncoder]
    tokenizers: Mapping[str, CLIPTokenizer]
    blank_is_zero: bool = False

    @property
    def width(self) -> int:
        """Width of the hidden states that the UNet gets."""
        return sum(encoder.config.hidden_size for encoder in self.encoders.values())

    @property
    def positions(self) -> int:
        """Tokens that are read of a text, its start and end included."""
        # Tokenizers saved without a length of their own claim to read without end.
        return min(encoder.config.max_position_embeddings for encoder in self.encoders.values())

    def with_tokenizers(self, tokenizers: Mapping[str, CLIPTokenizer]) -> TextEncoders:
        """The same encoders reading by other tokenizers: those that know new tokens."""
        return replace(self, tokenizers=dict(tokenizers))

    def count(self, text: str) -> int:
        """Tokens of ``text``, without its start and end."""
        return max(len(tokenizer.tokenize(text)) for tokenizer in self.tokenizers.values())

    def tokenize(self, texts: Sequence[str]) -> TokenIds:
        """``texts`` as ids, cut and padded to :attr:`positions`."""
        cut = {"padding": "max_length", "max_length": self.positions, "truncation": True, "return_tensors": "pt"}
        ids = {name: tokenizer(list(texts), **cut).input_ids for name, tokenizer in self.tokenizers.items()}
        return TokenIds(ids, torch.tensor([not text for text in texts]))

    def encode(self, ids: TokenIds) -> PromptEmbeds:
        """The conditioning of ``ids``, on the encoders' device; gradients reach whatever learns in the encoders."""
        told = self._two(ids) if len(self.encoders) > 1 else self._one(ids)
        if not self.blank_is_zero:
            return told
        pooled = None if told.pooled is None else told.pooled.masked_fill(ids.blank[:, None], 0)
        return PromptEmbeds(told.states.masked_fill(ids.blank[:, None, None], 0), pooled)

    def _one(self, ids: TokenIds) -> PromptEmbeds:
        ((name, encoder),) = self.encoders.items()
        return PromptEmbeds(encoder(ids.by_encoder[name])[0])

    def _two(self, ids: TokenIds) -> PromptEmbeds:
        outputs = [encoder(ids.by_encoder[name], output_hidden_states=True) for name, encoder in self.encoders.items()]
        return PromptEmbeds(torch.cat([out.hidden_states[-2] for out in outputs], dim=-1), outputs[-1].text_embeds)
