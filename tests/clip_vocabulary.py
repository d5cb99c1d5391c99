"""CLIP's own vocabulary of 49,408 entries, which open-clip-torch's wheel carries."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path

import pytest

ENTRIES = 49408


def clip_folder(folder: Path) -> Path:
    """Write ``vocab.json`` and ``merges.txt`` into ``folder``; skip the test where open-clip-torch is not installed.

    The order of entries is that of OpenAI's simple_tokenizer.py: bytes, bytes that end a word, merges, start and end.
    """
    spec = importlib.util.find_spec("open_clip")  # not imported: its own dependencies are not installed
    if spec is None or spec.origin is None:
        pytest.skip("open-clip-torch is not installed; scripts/setup --dev does it")
    text = gzip.decompress(Path(spec.origin).with_name("bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode()
    single = [*_bytes_as_letters()]
    single += [letter + "</w>" for letter in single]
    merges = text.splitlines()[1 : ENTRIES - len(single) - 2 + 1]
    entries = [*single, *("".join(merge.split()) for merge in merges), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({entry: number for number, entry in enumerate(entries)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    return folder


def _bytes_as_letters() -> list[str]:
    """Return a printable letter for each byte, the printable bytes first."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [*map(chr, plain), *(chr(256 + number) for number in range(256 - len(plain)))]
