"""New tokens for the text encoders: embedding rows that learn beside a table that does not.

peft's trainable tokens are not used, as they copy the whole table (49,408 rows of SD 1.5) at every step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from lora_service.errors import InputError
from lora_service.lora.token_embeddings import TokenEmbeddings, in_plain_words
from lora_service.models.clip_text_encoders import TextEncoder
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.text_encoders import TextEncoders


class LearnedTokens(nn.Module):
    """A text encoder's token embedding in which the ``n`` ids from ``first`` on are ``rows``.

    Only ``rows`` ``(n, width)``, fp32, learn: the predecessors' optimisers ran over the whole table and restored it
    at each step, to teach two rows.
    """

    def __init__(self, table: nn.Embedding, rows: torch.Tensor, first: int) -> None:
        super().__init__()
        self.table, self.first = table, first
        self.rows = nn.Parameter(rows.float())

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings ``(b, n, width)`` of ``ids`` ``(b, n)``."""
        embeds = self.table(ids)
        row = ids - self.first
        learned = self.rows.to(embeds.dtype)[row.clamp(0, len(self.rows) - 1)]
        is_learned = (row >= 0) & (row < len(self.rows))
        return torch.where(is_learned.unsqueeze(-1), learned, embeds)


@dataclass(frozen=True, eq=False)
class AddedTokens:
    """New tokens of a base, and their embeddings while they learn.

    Attributes:
        text: the base's text encoders with tokenizers that have the tokens.
        embeddings: text encoder -> the module with the rows that learn, in the tokens' order.
    """

    text: TextEncoders
    embeddings: Mapping[str, LearnedTokens]

    def rows(self) -> dict[str, torch.Tensor]:
        """Return the rows as they are, as :func:`added_tokens` takes them."""
        return {encoder: learned.rows.detach() for encoder, learned in self.embeddings.items()}


@contextmanager
def added_tokens(
    base: DiffusionBase, names: Sequence[str], rows: Mapping[str, torch.Tensor], plain_words: Mapping[str, str] = {}
) -> Iterator[AddedTokens]:
    """Add the tokens ``names`` to all text encoders that learn within the context.

    Args:
        rows: text encoder -> ``(n, width)``.
        plain_words: name -> what encoders read that do not learn; they read what is missing as it is written.

    The base's tokenizers are never touched, and its embedding tables are as before at the end.

    Raises:
        InputError: a name is a token of the base already, and would get no row of its own.
    """
    existing = [name for name in names for tokenizer in base.tokenizers.values() if name in tokenizer.get_vocab()]
    if existing:
        expected = f"words that {base.name} does not know yet, unlike {existing[0]}"
        raise InputError("placeholder_tokens", "|".join(names), expected, code="token_exists")
    tokens = TokenEmbeddings(base.text.encoders, base.tokenizers)
    with ExitStack() as stack:
        stack.callback(tokens.restore)
        tokens.set([{name: {encoder: by_row[i] for encoder, by_row in rows.items()} for i, name in enumerate(names)}])
        learned = {}
        for encoder, tokenizer in tokens.tokenizers.items():
            first = tokenizer.convert_tokens_to_ids(names[0])
            learned[encoder] = stack.enter_context(_learning(base.text.encoders[encoder], rows[encoder], first))
        in_words = partial(in_plain_words, words=plain_words)
        yield AddedTokens(base.text.with_tokenizers(tokens.tokenizers, in_words), learned)


@contextmanager
def _learning(encoder: TextEncoder, rows: torch.Tensor, first: int) -> Iterator[LearnedTokens]:
    table = encoder.get_input_embeddings()
    learned = LearnedTokens(table, rows, first).to(table.weight.device)
    encoder.set_input_embeddings(learned)
    try:
        yield learned
    finally:
        encoder.set_input_embeddings(table)


def initial_embeddings(
    base: DiffusionBase, names: Sequence[str], words: Sequence[str], generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Return the rows that the new tokens start from: text encoder -> ``(n, width)``, fp32.

    Each starts at one of ``words``, a word of several tokens at their mean; where a word is empty at random around 0.

    Raises:
        InputError: a word has no token in the base's vocabulary.
    """
    return {encoder: _initial_rows(base, encoder, names, words, generator) for encoder in base.text.learning}


def _initial_rows(
    base: DiffusionBase, encoder: str, names: Sequence[str], words: Sequence[str], generator: torch.Generator
) -> torch.Tensor:
    table = base.text.encoders[encoder].get_input_embeddings().weight[: len(base.tokenizers[encoder])]
    std = base.defaults.token_std or _median_norm(table) / math.sqrt(table.shape[1])
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
    """Pulls the norm of each learned row towards that of real words, as lora_pti does.

    ``norm ← norm + λ (target − norm)`` with ``λ = min(1, 100 · lr)``; the target is the base's ``token_norm``, or the
    median norm of the encoder's own rows.
    """

    def __init__(self, base: DiffusionBase, embeddings: Mapping[str, LearnedTokens]) -> None:
        self._targets = [
            (learned.rows, base.defaults.token_norm or _median_norm(learned.table.weight[: learned.first]))
            for learned in embeddings.values()
        ]

    def __call__(self, lr: float) -> None:
        for rows, target in self._targets:
            pull_norms(rows, target, lr)


def pull_norms(rows: torch.Tensor, target: float, lr: float) -> None:
    """Move each row's norm towards ``target``, in place."""
    with torch.no_grad():
        norms = rows.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        rows.mul_((norms + min(1.0, 100 * lr) * (target - norms)) / norms)


def _median_norm(table: torch.Tensor) -> float:
    """Return the median norm of a table's rows ``(n, width)``; rows of never-seen words would distort the mean."""
    return table.detach().float().norm(dim=-1).median().item()
