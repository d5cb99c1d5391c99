"""The embedded model's tokenizer: byte-level BPE in CLIP's format, trained on the synthetic dataset's captions."""

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
"""Length of a padded caption in tokens, with the start and end tokens."""

_CLIP_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_ENGLISH = (
    "a an the of in on at with and my his her this that toy dog cat person face man woman child girl boy object "
    "style art painting sketch portrait photo picture image photograph close up small big cute wearing standing "
    "sitting looking next to table grass street city house sky water tree flower sun rain mountain river white "
    "black old young new happy"
)


def load_or_train(captions: Iterable[str], folder: Path) -> CLIPTokenizer:
    """Load the tokenizer in ``folder``, or train it on ``captions`` and save it there.

    Training it twice gives different ids to words that no caption holds, as ties among their pairs are broken at
    random: all parts of a model have to be trained with the same tokenizer.
    """
    if not folder.exists():
        part = folder.with_suffix(".part")
        train(captions).save_pretrained(part)
        part.replace(folder)
    return CLIPTokenizer.from_pretrained(folder)


def train(captions: Iterable[str]) -> CLIPTokenizer:
    """Train a tokenizer on ``captions`` and a little everyday English.

    Its vocabulary holds the 512 byte symbols, as CLIP's does, so that every text can be encoded.
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
    entries = symbols + [s + "</w>" for s in symbols] + ["".join(pair) for pair in merges]
    vocab = {entry: i for i, entry in enumerate([*entries, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=[tuple(pair) for pair in merges], model_max_length=POSITIONS)
