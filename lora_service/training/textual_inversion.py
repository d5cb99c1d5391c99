"""New words for the text encoders: rows that learn beside tables that do not."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from lora_service.errors import InputError
from lora_service.lora.token_embeddings import end_of_prompt, set_end_of_prompt
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.text_encoders import TextEncoder, TextEncoders


class LearnedTokens(nn.Module):
    """Stands in for a text encoder's token embedding; ``n`` ids from ``first`` on are ``rows``.

    Only ``rows`` ``(n, width)``, fp32, learn: the predecessors' optimisers ran over
    the whole table and put it back at each step, to teach two rows.
    """

    def __init__(self, table: nn.Embedding, rows: torch.Tensor, first: int) -> None:
        super().__init__()
        self.table, self.first = table, first
        self.rows = nn.Parameter(rows.float())

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings ``(b, n, width)`` of ``ids`` ``(b, n)``."""
        place = ids - self.first
        known = self.table(ids.clamp(max=self.table.num_embeddings - 1))
        learned = self.rows.to(known.dtype)[place.clamp(0, len(self.rows) - 1)]
        new = (place >= 0) & (place < len(self.rows))
        return torch.where(new.unsqueeze(-1), learned, known)


@dataclass(frozen=True, eq=False)
class AddedTokens:
    """Words that a base has learned to read for a while.

    Attributes:
        text: the base's text side, reading by tokenizers that know them.
        rows: text encoder -> their rows, which learn.
    """

    text: TextEncoders
    rows: Mapping[str, LearnedTokens]


@contextmanager
def added_tokens(base: DiffusionBase, names: Sequence[str], rows: Mapping[str, torch.Tensor]) -> Iterator[AddedTokens]:
    """Within it all text encoders know ``names``, whose embeddings are ``rows`` (text encoder -> ``(n, width)``).

    The tokenizers that it gives are copies (fast tokenizers cannot unlearn a word);
    the base's own are never touched, and its embedding tables are put back at the end.
    """
    # A word that a tokenizer knows already would get no row of its own.
    known = [name for name in names for tokenizer in base.tokenizers.values() if name in tokenizer.get_vocab()]
    if known:
        raise InputError(
            "placeholder_tokens", "|".join(names), f"words that {base.name} does not know yet, unlike {known[0]}"
        )
    tokenizers = copy.deepcopy(dict(base.tokenizers))
    learned = {}
    with ExitStack() as changes:
        for encoder, tokenizer in tokenizers.items():
            tokenizer.add_tokens(list(names))
            # Not always the table's length: some bases' tables are longer than their vocabulary.
            first = tokenizer.convert_tokens_to_ids(names[0])
            model = base.text.encoders[encoder]
            learned[encoder] = changes.enter_context(_longer_table(model, rows[encoder], first, tokenizer.eos_token_id))
        yield AddedTokens(base.text.with_tokenizers(tokenizers), learned)


@contextmanager
def _longer_table(encoder: TextEncoder, rows: torch.Tensor, first: int, eos: int) -> Iterator[LearnedTokens]:
    table, end = encoder.get_input_embeddings(), end_of_prompt(encoder)
    learned = LearnedTokens(table, rows, first).to(table.weight.device)
    encoder.set_input_embeddings(learned)
    set_end_of_prompt(encoder, eos)
    try:
        yield learned
    finally:
        encoder.set_input_embeddings(table)
        set_end_of_prompt(encoder, end)


def initial_embeddings(
    base: DiffusionBase, names: Sequence[str], words: Sequence[str], generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Where the new rows of each text encoder start, ``(n, width)`` fp32.

    At the ``words``, one of several pieces at their mean; where one is empty at random around 0.

    Raises:
        InputError: a word has no piece that the base knows.
    """
    return {encoder: _first_rows(base, encoder, names, words, generator) for encoder in base.text.encoders}


def _first_rows(
    base: DiffusionBase, encoder: str, names: Sequence[str], words: Sequence[str], generator: torch.Generator
) -> torch.Tensor:
    table = base.text.encoders[encoder].get_input_embeddings().weight
    std = base.defaults.token_std or _usual_norm(table) / math.sqrt(table.shape[1])
    rows = torch.randn(len(names), table.shape[1], generator=generator) * std
    for i, word in enumerate(words[: len(names)]):
        if not word:
            continue
        ids = base.tokenizers[encoder](word, add_special_tokens=False).input_ids
        if not ids:
            raise InputError("initializer_tokens", word, "a word")
        rows[i] = table[ids].float().mean(dim=0).cpu()
    return rows


class NormPull:
    """Keeps learned words as loud as real ones.

    Each row's length is moved towards the recipe's, or towards the usual length of a row of the encoder's table:
    ``norm ← norm + λ (target − norm)``, ``λ = min(1, 100 · rate)``, which is lora_pti's rule.
    """

    def __init__(self, base: DiffusionBase, rows: Mapping[str, LearnedTokens]) -> None:
        self._targets = [
            (learned.rows, base.defaults.token_norm or _usual_norm(learned.table.weight)) for learned in rows.values()
        ]

    def __call__(self, rate: float) -> None:
        for rows, target in self._targets:
            pull_norms(rows, target, rate)


def pull_norms(rows: torch.Tensor, target: float, rate: float) -> None:
    """Move each row's length towards ``target``, in place."""
    with torch.no_grad():
        norms = rows.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        rows.mul_((norms + min(1.0, 100 * rate) * (target - norms)) / norms)


def _usual_norm(table: torch.Tensor) -> float:
    """The median length of a table's rows ``(n, width)``: never-seen words' are too short for the mean to tell."""
    return table.detach().float().norm(dim=-1).median().item()
