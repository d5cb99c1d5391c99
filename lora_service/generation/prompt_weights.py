"""Encodes parsed prompts: chunks for their parts, and their tokens' states weighted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lora_service.generation.prompt_syntax import ParsedPrompt, WeightedText
from lora_service.models.text_encoders import PromptEmbeds, TextEncoders, TokenIds

MAX_CHUNKS_WITH_BREAKS = 8
"""Most chunks of a prompt with ``BREAK``, which begins one whether the one before is full or not."""

_Token = tuple[int, float]
"""Id and weight."""


@dataclass(frozen=True)
class WeightedEncoder:
    """Encodes prompts whose words may have weights.

    A weight ``w`` moves the states of its tokens away from those of the empty prompt: ``empty + w · (states − empty)``,
    as compel does above 1 and ComfyUI always. (A1111 multiplies the states and then restores their mean, which changes
    the other words too, and divides by nearly zero where the mean is nearly zero.) XL's pooled embedding is that of the
    text without weights.

    Attributes:
        text: the text encoders as the request wants them.
        with_all_rows: completes the word of an embedding of several rows to the names of all its tokens.
        device: that of the encoders.
    """

    text: TextEncoders
    with_all_rows: Callable[[str], str]
    device: torch.device

    def count(self, prompt: ParsedPrompt) -> int:
        """Return the number of tokens, the most of any encoder."""
        if prompt.plain is not None:
            return self.text.count(self.with_all_rows(prompt.plain))
        return sum(max(len(ids) for ids in self._part_ids(part).values()) for part in prompt.parts)

    def chunks_for(self, prompt: ParsedPrompt) -> int:
        """Return the number of chunks that hold ``prompt``, or its beginning if it is longer than :meth:`limit`."""
        if prompt.plain is not None:
            return self.text.chunks_for(self.count(prompt))
        return min(self.limit(prompt), sum(self._chunks_of(self._part_ids(part)) for part in prompt.parts))

    def limit(self, prompt: ParsedPrompt) -> int:
        """Return the most chunks that are read of ``prompt``."""
        return self.text.max_chunks if len(prompt.parts) == 1 else MAX_CHUNKS_WITH_BREAKS

    def is_cut(self, prompt: ParsedPrompt) -> bool:
        """Return True if ``prompt`` is longer than what is read of it."""
        if prompt.plain is not None:
            return self.count(prompt) > self.text.max_chunks * self.text.chunk_tokens
        return sum(self._chunks_of(self._part_ids(part)) for part in prompt.parts) > self.limit(prompt)

    def encode(self, prompt: ParsedPrompt, chunks: int) -> PromptEmbeds:
        """Encode one prompt, padded or truncated to ``chunks`` chunks: ``(1, chunks · positions, width)``."""
        if prompt.plain is not None:
            return self.text.encode(self.text.tokenize([self.with_all_rows(prompt.plain)], chunks).to(self.device))
        tokens = self._chunked(prompt, chunks)
        ids = {name: torch.tensor([[i for i, _ in row]]) for name, row in tokens.items()}
        embeds = self.text.encode(TokenIds(ids, torch.tensor([False])).to(self.device))
        weights = {name: torch.tensor([w for _, w in row], device=self.device) for name, row in tokens.items()}
        if all(bool((each == 1).all()) for each in weights.values()):
            return embeds
        return PromptEmbeds(self._weighted(embeds.states, weights, chunks), embeds.pooled)

    def _weighted(self, states: Tensor, weights: Mapping[str, Tensor], chunks: int) -> Tensor:
        """Return the states ``(1, n, width)``; each encoder's share of the width has its tokens' weights ``(n,)``."""
        # Its real states, also where the base was trained with zeros for an empty prompt.
        no_text = TokenIds(self.text.tokenize([""]).by_encoder, torch.tensor([False]))
        empty = self.text.encode(no_text.to(self.device)).states.float().repeat(1, chunks, 1)
        widths = [self.text.encoders[name].config.hidden_size for name in weights]
        factors = torch.cat(
            [each[:, None].expand(-1, width) for each, width in zip(weights.values(), widths, strict=True)], dim=1
        )
        moved = empty + factors * (states.float() - empty)
        return torch.where(factors == 1, states, moved.to(states.dtype))

    def _part_ids(self, part: Iterable[WeightedText]) -> dict[str, list[_Token]]:
        """Return each encoder's tokens of a part, without start and end."""
        return {
            name: [(i, piece.weight) for piece in part for i in self._ids(tokenizer, piece.text)]
            for name, tokenizer in self.text.tokenizers.items()
        }

    def _ids(self, tokenizer: Any, text: str) -> list[int]:
        ids: list[int] = tokenizer(self.with_all_rows(text), add_special_tokens=False).input_ids
        return ids

    def _chunks_of(self, part: Mapping[str, list[_Token]]) -> int:
        longest = max(map(len, part.values()))
        return max(1, -(-longest // self.text.chunk_tokens))

    def _chunked(self, prompt: ParsedPrompt, chunks: int) -> dict[str, list[_Token]]:
        """Return each encoder's tokens in ``chunks`` chunks, each with its start and end as in training."""
        rows: dict[str, list[_Token]] = {name: [] for name in self.text.tokenizers}
        for part in prompt.parts:
            by_encoder = self._part_ids(part)
            count = self._chunks_of(by_encoder)
            for name, tokens in by_encoder.items():
                rows[name] += self._with_markers(name, tokens, count)
        length = chunks * self.text.positions
        for name, row in rows.items():
            row += self._with_markers(name, [], max(0, chunks - len(row) // self.text.positions))
            del row[length:]
        return rows

    def _with_markers(self, name: str, tokens: list[_Token], count: int) -> list[_Token]:
        tokenizer, size = self.text.tokenizers[name], self.text.chunk_tokens
        row: list[_Token] = []
        for start in range(0, count * size, size):
            chunk = [(tokenizer.bos_token_id, 1.0), *tokens[start : start + size], (tokenizer.eos_token_id, 1.0)]
            row += chunk + [(tokenizer.pad_token_id, 1.0)] * (self.text.positions - len(chunk))
        return row
