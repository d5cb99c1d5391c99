"""The text encoders of a base and what they make of texts, the same for training and generation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TokenIds:
    """Tokenized texts, each in the same number of chunks.

    Attributes:
        by_encoder: text encoder -> token ids ``(b, chunks · positions)``; each chunk has its start and end.
        is_empty: ``(b,)``, True for an empty text.
        masks: text encoder -> ``(b, chunks · positions)``, False for padding; of those that are told so.
        states: text encoder -> hidden states ``(b, n, width)``; of those that have read the texts already.
    """

    by_encoder: Mapping[str, Tensor]
    is_empty: Tensor
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    states: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.is_empty)

    def __getitem__(self, rows: Tensor | slice) -> TokenIds:
        """Return the texts ``rows``, in that order."""
        return self._each(lambda tensor: tensor[rows], self.is_empty[rows])

    def first(self, positions: int) -> TokenIds:
        """Return the first ``positions`` of each text."""
        return self._each(lambda tensor: tensor[:, :positions], self.is_empty)

    def split(self, size: int) -> Iterator[TokenIds]:
        """Yield all texts, ``size`` at a time."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def to(self, device: torch.device) -> TokenIds:
        return self._each(lambda tensor: tensor.to(device), self.is_empty.to(device))

    @staticmethod
    def concatenate(parts: Sequence[TokenIds]) -> TokenIds:
        """Return texts of the same number of chunks as one."""
        ids, masks, states = (
            {name: torch.cat([each[name] for each in column]) for name in column[0]}
            for column in zip(*((part.by_encoder, part.masks, part.states) for part in parts), strict=True)
        )
        return TokenIds(ids, torch.cat([part.is_empty for part in parts]), masks, states)

    def _each(self, change: Callable[[Tensor], Tensor], is_empty: Tensor) -> TokenIds:
        ids, masks, states = (
            {n: change(t) for n, t in each.items()} for each in (self.by_encoder, self.masks, self.states)
        )
        return TokenIds(ids, is_empty, masks, states)


@dataclass(frozen=True, eq=False)
class PromptEmbeds:
    """The embeddings of a batch of prompts, which condition the backbone.

    Attributes:
        states: hidden states ``(b, n, width)``.
        pooled: pooled embeddings ``(b, w)``; None for bases without.
        mask: ``(b, n)``, False for positions that are no part of a prompt; None where all of them are.
    """

    states: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None

    def __getitem__(self, rows: Tensor) -> PromptEmbeds:
        pooled, mask = (None if each is None else each[rows] for each in (self.pooled, self.mask))
        return PromptEmbeds(self.states[rows], pooled, mask)

    def first(self, positions: int) -> PromptEmbeds:
        """Return the first ``positions`` of each prompt."""
        mask = None if self.mask is None else self.mask[:, :positions]
        return PromptEmbeds(self.states[:, :positions], self.pooled, mask)

    @staticmethod
    def concatenate(batches: Sequence[PromptEmbeds]) -> PromptEmbeds:
        """Return ``batches`` as one batch."""
        pooled = [batch.pooled for batch in batches if batch.pooled is not None]
        masks = [batch.mask for batch in batches if batch.mask is not None]
        return PromptEmbeds(
            torch.cat([batch.states for batch in batches]),
            torch.cat(pooled) if pooled else None,
            torch.cat(masks) if masks else None,
        )

    def as_kwargs(self, prefix: str = "") -> dict[str, Tensor]:
        """Return the keyword arguments of a diffusers pipeline; ``prefix`` is ``negative_`` or nothing."""
        kwargs = {f"{prefix}prompt_embeds": self.states}
        return kwargs if self.pooled is None else {**kwargs, f"{prefix}pooled_prompt_embeds": self.pooled}


@dataclass(frozen=True, eq=False)
class TextEncoders(ABC):
    """Text encoders with their tokenizers, by the encoders' names in LoRA files, ``text_encoder`` first.

    A text is read in chunks of :attr:`positions` tokens, at most :attr:`max_chunks` of them.

    Attributes:
        clip_skip: the layer that is read, counted from the end; None: the base's own.
        on_device: a context that the encoders are used in; one that were elsewhere may come to their device in it.
        companions_on_device: the same for the :attr:`companions`.
        plain_text: makes of a text what encoders read that do not know its new tokens.
        max_chunks: the most chunks of a text.
        reads_weights: True if words of a prompt may have weights, and ``BREAK`` may begin a chunk.
    """

    encoders: Mapping[str, Any]
    tokenizers: Mapping[str, Any]
    clip_skip: int | None = None
    on_device: Callable[[], AbstractContextManager[None]] = nullcontext
    companions_on_device: Callable[[], AbstractContextManager[None]] = nullcontext
    plain_text: Callable[[str], str] = str

    max_chunks: ClassVar[int] = 1
    reads_weights: ClassVar[bool] = False

    @property
    def learning(self) -> Mapping[str, Any]:
        """The encoders that learn new tokens and LoRA layers."""
        return {}

    @property
    def companions(self) -> Mapping[str, Any]:
        """The frozen encoders beside those that learn; they know no new tokens."""
        return {}

    @property
    @abstractmethod
    def width(self) -> int:
        """Width of the hidden states that the backbone reads."""

    @property
    @abstractmethod
    def positions(self) -> int:
        """Number of tokens of a chunk, with its start and end."""

    @property
    @abstractmethod
    def chunk_tokens(self) -> int:
        """Number of a text's own tokens in a chunk."""

    @abstractmethod
    def tokenize(self, texts: Sequence[str], chunks: int = 1) -> TokenIds:
        """Tokenize ``texts``, truncated and padded to ``chunks`` chunks of :attr:`positions` ids."""

    @abstractmethod
    def encode(self, ids: TokenIds) -> PromptEmbeds:
        """Encode ``ids``, on the encoders' device; gradients reach whatever is trained in the encoders.

        The states are ``(b, chunks · positions, width)``.
        """

    @abstractmethod
    def with_clip_skip(self, clip_skip: int | None) -> Self:
        """Return the same encoders, read at another layer, counted from the end; None: the base's own.

        Raises:
            InputError: they have no such layer.
        """

    def unused_layers(self, name: str) -> tuple[str, ...]:
        """Return the module paths, without ``text_model.``, of layers of the encoder ``name`` that no embeds need."""
        return ()

    def read_by_companions(self, ids: TokenIds) -> TokenIds:
        """Return ``ids`` with the states of the :attr:`companions`, which :meth:`encode` then makes no more."""
        return ids

    def positions_of(self, encoder: str) -> int:
        """Return the tokens of a text that the encoder of this name reads at once."""
        return self.positions

    def with_tokenizers(self, tokenizers: Mapping[str, Any], plain_text: Callable[[str], str] = str) -> Self:
        """Return the same encoders with other tokenizers, which know new tokens.

        Args:
            plain_text: as of :attr:`plain_text`, for these tokens.
        """
        known = self.plain_text
        return replace(
            self, tokenizers={**self.tokenizers, **tokenizers}, plain_text=lambda text: plain_text(known(text))
        )

    def count(self, text: str) -> int:
        """Return the number of tokens of ``text``, without its start and end."""
        return max(len(tokenizer.tokenize(text)) for tokenizer in self.tokenizers.values())

    def chunks_for(self, tokens: int) -> int:
        """Return the number of chunks that hold ``tokens`` tokens, 1 to :attr:`max_chunks`."""
        return min(self.max_chunks, max(1, -(-tokens // self.chunk_tokens)))

    def arguments(self, embeds: PromptEmbeds, prefix: str = "") -> dict[str, Any]:
        """Return a prompt as the keyword arguments of a diffusers pipeline; ``prefix`` is ``negative_`` or nothing."""
        return embeds.as_kwargs(prefix)
