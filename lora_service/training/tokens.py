"""New words for a text encoder: rows that learn beside a table that does not."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from lora_service.errors import InputError
from lora_service.models.bundle import BaseModel


class TokenRows(nn.Module):
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


@contextmanager
def added_tokens(
    base: BaseModel, names: Sequence[str], rows: torch.Tensor
) -> Iterator[tuple[CLIPTokenizer, TokenRows]]:
    """Within it the text encoder knows ``names``, whose embeddings are ``rows`` ``(n, width)``.

    The tokenizer that it gives is a copy (fast tokenizers cannot unlearn a word);
    the base's own is never touched, and its embedding table is put back at the end.
    """
    encoder: CLIPTextModel = base.text_encoder
    table = encoder.get_input_embeddings()
    tokenizer = copy.deepcopy(base.tokenizer)
    # A word that the tokenizer knows already would get no row of its own.
    known = [name for name in names if name in tokenizer.get_vocab()]
    if known:
        raise InputError(
            "placeholder_tokens", "|".join(names), f"words that {base.name} does not know yet, unlike {known[0]}"
        )
    tokenizer.add_tokens(list(names))
    # Not always the table's length: some bases' tables are longer than their vocabulary.
    learned = TokenRows(table, rows, tokenizer.convert_tokens_to_ids(names[0])).to(base.device)
    encoder.set_input_embeddings(learned)
    try:
        yield tokenizer, learned
    finally:
        encoder.set_input_embeddings(table)


def first_rows(base: BaseModel, names: Sequence[str], words: Sequence[str], generator: torch.Generator) -> torch.Tensor:
    """Where the new rows start, ``(n, width)`` fp32: at the ``words``, where one is empty at random around 0.

    A word of several pieces starts at their mean.

    Raises:
        InputError: a word has no piece that the base knows.
    """
    table = base.text_encoder.get_input_embeddings().weight
    rows = torch.randn(len(names), table.shape[1], generator=generator) * base.recipe.token_std
    for i, word in enumerate(words[: len(names)]):
        if not word:
            continue
        ids = base.tokenizer(word, add_special_tokens=False).input_ids
        if not ids:
            raise InputError("initializer_tokens", word, "a word")
        rows[i] = table[ids].float().mean(dim=0).cpu()
    return rows


def pull_norms(rows: torch.Tensor, target: float, rate: float) -> None:
    """Move each row's length towards ``target``, in place, which keeps learned words as loud as real ones.

    ``norm ← norm + λ (target − norm)``, ``λ = min(1, 100 · rate)``: lora_pti's rule.
    """
    with torch.no_grad():
        norms = rows.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        rows.mul_((norms + min(1.0, 100 * rate) * (target - norms)) / norms)
