"""The embedded model's tokenizer: byte-level BPE in CLIP's format, learned from the synthetic dataset's captions."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

MERGES = 400
POSITIONS = 48
"""Longest caption in tokens, with its start and end."""

_CLIP_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_ENGLISH = (
    "a an the of in on at with and my his her this that toy dog cat person face man woman child girl boy object "
    "style art painting sketch portrait photo picture image photograph close up small big cute wearing standing "
    "sitting looking next to table grass street city house sky water tree flower sun rain mountain river white "
    "black old young new happy"
)


def kept(captions: Iterable[str], folder: Path) -> CLIPTokenizer:
    """The tokenizer in ``folder``, learned from ``captions`` if there is none yet.

    Words that no caption holds are numbered differently by each learning, as ties among
    their pairs fall by chance: what is trained in parts has to keep the one it began with.
    """
    if not folder.exists():
        part = folder.with_suffix(".part")
        train(captions).save_pretrained(part)
        part.replace(folder)
    return CLIPTokenizer.from_pretrained(folder)


def train(captions: Iterable[str]) -> CLIPTokenizer:
    """A tokenizer whose words are those of ``captions`` and of a little everyday English.

    The 512 byte symbols are in, as in CLIP's, so that no text is without tokens.
    """
    tokenizer = Tokenizer(BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = BpeTrainer(vocab_size=512 + MERGES, show_progress=False, end_of_word_suffix="</w>", max_token_length=16)
    tokenizer.train_from_iterator([*captions, *([_ENGLISH] * 50)], trainer)
    merges = json.loads(tokenizer.model.__getstate__())["merges"][:MERGES]
    # CLIP's own order: bytes, bytes that end a word, merges, start, end.
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = symbols + [s + "</w>" for s in symbols] + ["".join(pair) for pair in merges]
    vocab = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=[tuple(pair) for pair in merges], model_max_length=POSITIONS)
