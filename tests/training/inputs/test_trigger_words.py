"""The words that are chosen as triggers."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from lora_service.models.clip_text_encoders import ClipTextEncoders
from lora_service.training.inputs.trigger_words import MAX_PIECES, _is_rare, _random_word, choose_trigger_word
from tests.clip_vocabulary import clip_folder
from tests.small_base import small_base


@pytest.fixture
def clip(tmp_path: Path) -> CLIPTokenizer:
    folder = clip_folder(tmp_path / "clip")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))


def test_triggers_are_short_pronounceable_and_no_words(clip: CLIPTokenizer) -> None:
    text = ClipTextEncoders({}, {"text_encoder": clip})
    words = [choose_trigger_word(text, random.Random(seed)) for seed in range(200)]
    assert len(set(words)) == len(words)
    vocabulary = clip.get_vocab()
    for word in words:
        assert re.fullmatch(r"[a-z]{6,7}", word)
        assert not re.search(r"[aeiou]{2}|[^aeiou]{3}", word)
        assert len(clip.tokenize(word)) in range(2, MAX_PIECES + 1)
        assert not any(word[:i] + "</w>" in vocabulary or word[-i:] + "</w>" in vocabulary for i in range(4, 8))


def test_there_are_a_million_of_them(clip: CLIPTokenizer) -> None:
    """Estimated by the share of random words that are taken; two draws meet with the sum of the squared chances."""
    rng, tries, taken = random.Random(0), 500, {6: 0, 7: 0}
    vocabulary = clip.get_vocab()
    for word in [_random_word(rng) for _ in range(tries)]:
        taken[len(word)] += len(clip.tokenize(word)) <= MAX_PIECES and _is_rare(word, vocabulary)
    counts = {length: taken[length] / (tries / 2) * 17**4 * 5 ** (length - 4) for length in taken}
    chances = {length: taken[length] / sum(taken.values()) for length in taken}
    assert 1 / sum(chances[length] ** 2 / counts[length] for length in taken) > 1_000_000


def test_a_vocabulary_without_these_pieces_gets_the_shortest_tried() -> None:
    text = small_base().text
    word = choose_trigger_word(text, random.Random(1))
    assert word == choose_trigger_word(text, random.Random(1))
    assert re.fullmatch(r"[a-z]{6,7}", word)
