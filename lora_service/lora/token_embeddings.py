"""Learned tokens in copies of tokenizers and in embedding tables, added and exactly removed, for training and
inference alike."""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count, groupby, takewhile
from typing import Any

import torch
from tokenizers import AddedToken
from torch import Tensor, nn
from transformers import CLIPTokenizer

from lora_service.errors import WrongBaseError
from lora_service.lora.weights import LoraWeights

RowsByToken = Mapping[str, Mapping[str, Tensor]]
"""Token name -> component -> row ``(width,)``."""

_CACHED_COPIES = 4


@dataclass(frozen=True, eq=False)
class _OriginalTable:
    """An embedding table before tokens were added."""

    weight: Tensor
    rows: int
    eos_token_id: Any


class TokenEmbeddings:
    """The tokens that are added to text encoders now, and their removal.

    Fast tokenizers cannot remove tokens, so tokens go into copies; the originals are never touched. A learned row
    goes behind the table's own rows, in a new table that the embedding points to while the tokens are there.
    """

    def __init__(self, encoders: Mapping[str, nn.Module], tokenizers: Mapping[str, CLIPTokenizer]) -> None:
        self._encoders = {name: encoders[name] for name in tokenizers if name in encoders}
        self._original_tokenizers = dict(tokenizers)
        self._tokenizers = dict(tokenizers)
        self._taken = {name for tokenizer in tokenizers.values() for name in tokenizer.get_vocab()}
        self._copies: OrderedDict[tuple[str, tuple[str, ...]], CLIPTokenizer] = OrderedDict()
        self._tables: dict[str, _OriginalTable] = {}
        self._added: list[tuple[str, str, Tensor]] = []
        self._other_rows: dict[str, tuple[str, ...]] = {}

    @property
    def tokenizers(self) -> Mapping[str, CLIPTokenizer]:
        """The tokenizers with the added tokens, per text encoder."""
        return dict(self._tokenizers)

    @property
    def names(self) -> frozenset[str]:
        """The names of the added tokens, as they are written in prompts."""
        return frozenset(name for _, name, _ in self._added)

    def unique_names(self, tokens: Sequence[RowsByToken]) -> list[dict[str, str]]:
        """Return each LoRA's token names -> their names in prompts: the same, unless a name is taken already."""
        taken = set(self._taken)
        result: list[dict[str, str]] = []
        for number, rows in enumerate(tokens, start=1):
            unique = {}
            for name in rows:
                candidate = name
                while candidate in taken:
                    candidate = f"<lora{number}:{candidate.strip('<>')}>"
                taken.add(candidate)
                unique[name] = candidate
            result.append(unique)
        return result

    def check(self, rows: RowsByToken) -> None:
        """Check that the rows fit the tables.

        Raises:
            WrongBaseError: a row is for a text encoder that is not there, or of another width.
        """
        for name, by_encoder in rows.items():
            for component, row in by_encoder.items():
                if component not in self._encoders:
                    raise WrongBaseError(
                        f"The LoRA's token {name!r} is for a {component}, which this base does not have.",
                        code="no_such_encoder",
                    )
                width = _embedding(self._encoders[component]).weight.shape[1]
                if row.shape != (width,):
                    raise WrongBaseError(
                        f"The LoRA's token {name!r} was learned for a {component} of width {row.shape[-1]}, "
                        f"but this base's has width {width}.",
                        code="wrong_width",
                    )

    def set(self, tokens: Sequence[RowsByToken]) -> list[dict[str, str]]:
        """Add these tokens in place of those added before; return :meth:`unique_names`."""
        names = self.unique_names(tokens)
        added = [
            (component, unique[name], row)
            for rows, unique in zip(tokens, names, strict=True)
            for name, by_encoder in rows.items()
            for component, row in by_encoder.items()
        ]
        if [(c, name, id(row)) for c, name, row in added] != [(c, name, id(row)) for c, name, row in self._added]:
            self.restore()
            self._other_rows = {word: rows for unique in names for word, rows in _other_rows(unique).items()}
            self._added = added  # before the tables: an interruption must not leave rows that nobody removes
            for component in self._encoders:
                self._add(component, {name: row for c, name, row in added if c == component})
        return names

    def with_all_rows(self, prompt: str) -> str:
        """Return a prompt in which the word of an embedding of several rows is followed by the names of the others.

        diffusers does the same (``maybe_convert_prompt``), and A1111 and ComfyUI know no names but the word.
        """
        if not self._other_rows:
            return prompt
        names = sorted({name for _, name, _ in self._added}, key=len, reverse=True)

        def expand(match: re.Match[str]) -> str:
            others = self._other_rows.get(match[0], ())
            rest = prompt[match.end() :]
            if not others or rest.lstrip().startswith(others[0]):
                return match[0]  # a single row, or a prompt that names them all
            return as_text([match[0], *others]) + (" " if re.match(r"\w", rest) else "")

        return re.sub("|".join(map(_pattern, names)), expand, prompt)

    def restore(self) -> None:
        """Put the original tokenizers and tables back."""
        self._added = []
        self._other_rows = {}
        self._tokenizers = dict(self._original_tokenizers)
        for component, table in self._tables.items():
            encoder = self._encoders[component]
            embedding = _embedding(encoder)
            embedding.weight.data = table.weight.to(embedding.weight.device, embedding.weight.dtype)
            embedding.num_embeddings = table.rows
            _set_end_of_prompt(encoder, table.eos_token_id)
        self._tables = {}

    def _add(self, component: str, rows: Mapping[str, Tensor]) -> None:
        if not rows:
            return
        tokenizer = self._copy_with(component, tuple(rows))
        encoder = self._encoders[component]
        embedding = _embedding(encoder)
        weight = embedding.weight.data
        ids = tokenizer.convert_tokens_to_ids(list(rows))
        table = weight.new_zeros(max(len(weight), max(ids) + 1), weight.shape[1])
        table[: len(weight)] = weight
        table[ids] = torch.stack(list(rows.values())).to(weight.device, weight.dtype)
        self._tables[component] = _OriginalTable(weight, embedding.num_embeddings, _end_of_prompt(encoder))
        embedding.weight.data = table
        embedding.num_embeddings = len(table)
        # Configurations from before transformers 4.24 say that EOS is 2 and mean the highest id, which a new token is.
        _set_end_of_prompt(encoder, tokenizer.eos_token_id)
        self._tokenizers[component] = tokenizer

    def _copy_with(self, component: str, names: tuple[str, ...]) -> CLIPTokenizer:
        """Return a copy of the tokenizer with these tokens; copying takes tens of milliseconds, so a few are cached."""
        key = (component, names)
        if key not in self._copies:
            tokenizer = copy.deepcopy(self._original_tokenizers[component])
            # Not normalised: CLIP's lower-casing would let "<S1>" in a prompt miss the token "<S1>", and make one
            # token of "<s1>" and "<S1>".
            tokenizer.add_tokens([AddedToken(n, normalized=False, single_word=not _bracketed(n)) for n in names])
            self._copies[key] = tokenizer
        self._copies.move_to_end(key)
        while len(self._copies) > _CACHED_COPIES:
            self._copies.popitem(last=False)
        return self._copies[key]


def _other_rows(names: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Return the first word of each embedding of several rows -> the names of its other rows.

    Args:
        names: a LoRA's own token names, of which an embedding's are ``word``, ``word_1``, ``word_2``, … -> their names
            in prompts.
    """
    others = {
        word: tuple(names[row] for row in takewhile(names.__contains__, (f"{word}_{i}" for i in count(1))))
        for word in names
    }
    return {names[word]: rows for word, rows in others.items() if rows}


def in_plain_words(prompt: str, words: Mapping[str, str]) -> str:
    """Return a prompt as an encoder reads it that does not know the tokens: with plain words in their place.

    Args:
        words: token name -> its word; tokens in a row that have the same are one word, and "" leaves them out.
    """
    if not words:
        return prompt
    token = "|".join(_pattern(name) for name in sorted(words, key=len, reverse=True))

    def replace(match: re.Match[str]) -> str:
        in_a_row = groupby(words[found[0]] for found in re.finditer(token, match[0]))
        text = " ".join(word for word, _ in in_a_row if word)
        before, after = prompt[: match.start()], prompt[match.end() :]
        return " " * bool(re.search(r"\w$", before)) + text + " " * bool(re.match(r"\w", after))

    return re.sub(rf"(?:{token})(?:\s*(?:{token}))*", replace, prompt)


def _pattern(name: str) -> str:
    """Return the pattern of a token in a prompt: a word of its own, unless it has brackets."""
    return re.escape(name) if _bracketed(name) else rf"(?<!\w){re.escape(name)}(?!\w)"


def as_text(names: Sequence[str]) -> str:
    """Join tokens to a piece of a prompt: ``<s1><s2>``, but ``word word_1`` where the names have no brackets."""
    return ("" if all(map(_bracketed, names)) else " ").join(names)


def named_subjects(weights: LoraWeights, names: Mapping[str, str]) -> dict[str, str]:
    """Return number, trigger, and first word of the trigger of each subject -> its text in prompts.

    A word that several subjects share is the first one's.
    """
    texts = [
        as_text([names.get(token, token) for token in subject.tokens]) or subject.trigger
        for subject in weights.subjects
    ]
    by_name = {str(number): text for number, text in enumerate(texts, start=1)}
    triggers = [subject.trigger.lower() for subject in weights.subjects]
    for keys in (triggers, [trigger.split(" ")[0] for trigger in triggers]):
        for key, text in zip(keys, texts, strict=True):
            by_name.setdefault(key, text)
    return by_name


def _bracketed(name: str) -> bool:
    return name.startswith("<") and name.endswith(">")


def _embedding(encoder: nn.Module) -> nn.Embedding:
    embedding: nn.Embedding = encoder.get_input_embeddings()  # type: ignore[operator]
    return embedding


def _end_of_prompt(encoder: nn.Module) -> Any:
    """Return the id by which a text encoder finds the end of a prompt, whose state is the pooled one."""
    return getattr(_end_holder(encoder), "eos_token_id", None)


def _set_end_of_prompt(encoder: nn.Module, token_id: Any) -> None:
    """Make ``token_id`` the id of a prompt's end, in encoders that look for one."""
    holder = _end_holder(encoder)
    if hasattr(holder, "eos_token_id"):
        holder.eos_token_id = token_id


def _end_holder(encoder: nn.Module) -> Any:
    """Return the module that finds the end: inside the encoder, or, in newer transformers, itself."""
    return getattr(encoder, "text_model", encoder)
