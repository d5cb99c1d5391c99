"""The real entries: Cog's build can read them, and every input is described and optional."""

from __future__ import annotations

import pytest

from lora_service.serving import entries, signature
from lora_service.serving.entries import EntrySignature

MODES: tuple[entries.Mode, ...] = ("predict", "train")
FILES = {"predict": "predict.py", "train": "train.py"}


def read(mode: entries.Mode) -> EntrySignature:
    if not (entries.HOME / FILES[mode]).exists():
        pytest.skip(f"{FILES[mode]} does not exist yet")
    return signature.read(entries.find(mode))


@pytest.mark.parametrize("mode", MODES)
def test_the_build_reads_the_entry_as_it_is_written(mode) -> None:
    assert read(mode).parameters


@pytest.mark.parametrize("mode", MODES)
def test_every_input_is_described_in_one_line(mode) -> None:
    descriptions = {parameter.name: parameter.notes.get("description", "") for parameter in read(mode).parameters}
    assert [name for name, text in descriptions.items() if not text or "\n" in text] == []


@pytest.mark.parametrize("mode", MODES)
def test_every_input_may_be_left_out(mode) -> None:
    assert [parameter.name for parameter in read(mode).parameters if parameter.required] == []


def test_one_image_can_hold_both_entries() -> None:
    entries.check_shared_choices(read("predict"), read("train"))
