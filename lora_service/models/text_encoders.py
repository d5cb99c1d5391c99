"""The text encoders of a base, one of CLIP's or Stable Diffusion XL's two, the same for training and generation."""

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
    """Tokenized texts.

    Attributes:
        by_encoder: text encoder -> token ids ``(b, n)``.
        is_empty: ``(b,)``, True for an empty text.
    """

    by_encoder: Mapping[str, Tensor]
    is_empty: Tensor

    def __len__(self) -> int:
        return len(self.is_empty)

    def __getitem__(self, rows: Tensor | slice) -> TokenIds:
        """Return the texts ``rows``, in that order."""
        return TokenIds({name: ids[rows] for name, ids in self.by_encoder.items()}, self.is_empty[rows])

    def split(self, size: int) -> Iterator[TokenIds]:
        """Yield all texts, ``size`` at a time."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def to(self, device: torch.device) -> TokenIds:
        return TokenIds({name: ids.to(device) for name, ids in self.by_encoder.items()}, self.is_empty.to(device))


@dataclass(frozen=True, eq=False)
class PromptEmbeds:
    """The embeddings of a batch of prompts, which condition the UNet.

    Attributes:
        states: hidden states ``(b, n, width)``.
        pooled: Stable Diffusion XL's pooled embeddings ``(b, w)``; None for 1.x and 2.x.
    """

    states: Tensor
    pooled: Tensor | None = None

    def __getitem__(self, rows: Tensor) -> PromptEmbeds:
        return PromptEmbeds(self.states[rows], None if self.pooled is None else self.pooled[rows])

    @staticmethod
    def concatenate(batches: Sequence[PromptEmbeds]) -> PromptEmbeds:
        """Return ``batches`` as one batch."""
        pooled = [batch.pooled for batch in batches if batch.pooled is not None]
        return PromptEmbeds(torch.cat([batch.states for batch in batches]), torch.cat(pooled) if pooled else None)

    def as_kwargs(self, prefix: str = "") -> dict[str, Tensor]:
        """Return the keyword arguments of a diffusers pipeline; ``prefix`` is ``negative_`` or nothing."""
        kwargs = {f"{prefix}prompt_embeds": self.states}
        return kwargs if self.pooled is None else {**kwargs, f"{prefix}pooled_prompt_embeds": self.pooled}


@dataclass(frozen=True, eq=False)
class TextEncoders:
    """Text encoders with their tokenizers, by the encoders' names in LoRA files, ``text_encoder`` first.

    The prompt embeds of one encoder (Stable Diffusion 1.x and 2.x) are its last hidden states. Those of two (XL) are
    both penultimate hidden states, concatenated, and as pooled embedding the second one's projection of the
    end-of-text token (https://arxiv.org/abs/2307.01952, section 2.1).

    Attributes:
        zeros_for_empty_prompt: the base was trained with zeros for an empty prompt, not with the embedding of ""
            (diffusers' ``force_zeros_for_empty_prompt``).
    """

    encoders: Mapping[str, TextEncoder]
    tokenizers: Mapping[str, CLIPTokenizer]
    zeros_for_empty_prompt: bool = False

    @property
    def width(self) -> int:
        """Width of the hidden states that the UNet reads, its ``cross_attention_dim``."""
        return sum(encoder.config.hidden_size for encoder in self.encoders.values())

    @property
    def positions(self) -> int:
        """Number of tokens that are encoded of a text, with its start and end."""
        # A tokenizer saved without ``model_max_length`` claims to have no limit.
        return min(encoder.config.max_position_embeddings for encoder in self.encoders.values())

    def unused_layers(self, name: str) -> tuple[str, ...]:
        """Return the module paths, without ``text_model.``, of layers of the encoder ``name`` that no embeds depend on.

        That is the last layer of XL's first encoder, whose penultimate hidden states are used; the second one's is
        behind the pooled embedding.
        """
        if len(self.encoders) == 1 or name == list(self.encoders)[-1]:
            return ()
        return (f"encoder.layers.{self.encoders[name].config.num_hidden_layers - 1}",)

    def with_tokenizers(self, tokenizers: Mapping[str, CLIPTokenizer]) -> TextEncoders:
        """Return the same encoders with other tokenizers, which know new tokens."""
        return replace(self, tokenizers=dict(tokenizers))

    def count(self, text: str) -> int:
        """Return the number of tokens of ``text``, without its start and end."""
        return max(len(tokenizer.tokenize(text)) for tokenizer in self.tokenizers.values())

    def tokenize(self, texts: Sequence[str]) -> TokenIds:
        """Tokenize ``texts``, truncated and padded to :attr:`positions`."""
        options = {"padding": "max_length", "max_length": self.positions, "truncation": True, "return_tensors": "pt"}
        ids = {name: tokenizer(list(texts), **options).input_ids for name, tokenizer in self.tokenizers.items()}
        return TokenIds(ids, torch.tensor([not text for text in texts]))

    def encode(self, ids: TokenIds) -> PromptEmbeds:
        """Encode ``ids``, on the encoders' device; gradients reach whatever is trained in the encoders."""
        embeds = self._encode_with_two(ids) if len(self.encoders) > 1 else self._encode_with_one(ids)
        if not self.zeros_for_empty_prompt:
            return embeds
        pooled = None if embeds.pooled is None else embeds.pooled.masked_fill(ids.is_empty[:, None], 0)
        return PromptEmbeds(embeds.states.masked_fill(ids.is_empty[:, None, None], 0), pooled)

    def _encode_with_one(self, ids: TokenIds) -> PromptEmbeds:
        ((name, encoder),) = self.encoders.items()
        return PromptEmbeds(encoder(ids.by_encoder[name])[0])

    def _encode_with_two(self, ids: TokenIds) -> PromptEmbeds:
        outputs = [encoder(ids.by_encoder[name], output_hidden_states=True) for name, encoder in self.encoders.items()]
        return PromptEmbeds(torch.cat([out.hidden_states[-2] for out in outputs], dim=-1), outputs[-1].text_embeds)
