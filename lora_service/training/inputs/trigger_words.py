"""Trigger words: rare, pronounceable, and short for the base's tokenizer."""

from __future__ import annotations

import random
from collections.abc import Container

from lora_service.models.text_encoders import TextEncoders

_RARE = "jkvwxz"
_CONSONANTS = _RARE + "bdfglmnprst"
_VOWELS = "aeiou"
_PATTERNS = ("CVCCVC", "CVCVCVC")
MAX_PIECES = 3
"""Tokens of a trigger word: about 3.4 million words of the patterns have at most these in CLIP's vocabulary."""
_TRIES = 200
_SHORTEST_WORD = 4
_WHOLE_WORDS = ("{}</w>", "Ġ{}", "▁{}")
"""Entries of vocabularies that are a whole word: CLIP's, those of byte-level BPE, and SentencePiece's."""


def choose_trigger_word(text: TextEncoders, rng: random.Random) -> str:
    """Return a word of consonants and vowels in turn that means nothing to a base with these text encoders.

    It has at most ``MAX_PIECES`` tokens where the vocabulary allows it, else as few as any that was tried. It holds
    two of the rarest letters, and neither it nor its beginning or end is a word that the vocabulary knows.
    """
    vocabulary = {entry for tokenizer in text.tokenizers.values() for entry in tokenizer.get_vocab()}
    shortest, pieces = "", 0
    for _ in range(_TRIES):
        word = _random_word(rng)
        if not _is_rare(word, vocabulary):
            continue
        count = text.count(word)
        if count <= MAX_PIECES:
            return word
        if not shortest or count < pieces:
            shortest, pieces = word, count
    return shortest or _random_word(rng)


def _random_word(rng: random.Random) -> str:
    return "".join(rng.choice(_CONSONANTS if kind == "C" else _VOWELS) for kind in rng.choice(_PATTERNS))


def _is_rare(word: str, vocabulary: Container[str]) -> bool:
    """Return True if ``word`` has two rare letters and does not begin or end with a word of ``vocabulary``.

    A name is often a whole word with an ending, as walker is.
    """
    if sum(letter in _RARE for letter in word) < 2:
        return False
    lengths = range(_SHORTEST_WORD, len(word) + 1)
    parts = (part for length in lengths for part in (word[:length], word[-length:]))
    return not any(form.format(part) in vocabulary for part in parts for form in _WHOLE_WORDS)
