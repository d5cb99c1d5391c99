"""Textual inversions in PyTorch's own files: the common ones are read, and nothing is run."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lora_service.errors import LoraFileError
from lora_service.lora.files import read_lora
from tests.errors import raises

ROWS = torch.arange(6.0).reshape(2, 3)


class Program:
    """A hostile pickle's content: a call of any function."""

    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/lora-service-was-here",)


def save(path: Path, stored: Any) -> Path:
    torch.save(stored, path)
    return path


@pytest.mark.parametrize(
    "stored",
    [
        {"string_to_token": {"*": 265}, "string_to_param": {"*": ROWS}, "name": "x", "step": 500},
        {"string_to_param": nn.ParameterDict({"*": nn.Parameter(ROWS)})},
        {"emb_params": ROWS},
    ],
    ids=["A1111", "ParameterDict", "emb_params"],
)
def test_a_file_without_a_word_has_its_own_name(tmp_path: Path, stored: Any) -> None:
    weights = read_lora(save(tmp_path / "a.pt", stored), "my style.pt", torch_embedding=True)
    assert {name: rows["text_encoder"].tolist() for name, rows in weights.embeddings.items()} == {
        "my_style": [0, 1, 2],
        "my_style_1": [3, 4, 5],
    }
    assert weights.layers == {}


def test_of_xl_and_of_diffusers(tmp_path: Path) -> None:
    xl = read_lora(save(tmp_path / "cat.pt", {"clip_l": ROWS, "clip_g": ROWS}), torch_embedding=True)
    assert set(xl.embeddings["cat"]) == {"text_encoder", "text_encoder_2"}
    bin_file = read_lora(save(tmp_path / "learned.bin", {"<cat-toy>": ROWS[0]}), torch_embedding=True)
    assert set(bin_file.embeddings) == {"<cat-toy>"}


@pytest.mark.attack("pickles")
def test_a_program_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", {"string_to_param": {"*": ROWS}, "more": Program()})
    with raises(LoraFileError, code="pickle"):
        read_lora(path, torch_embedding=True)
    assert not Path("/tmp/lora-service-was-here").exists()


@pytest.mark.parametrize(
    ("stored", "code"),
    [
        ({"string_to_param": {"*": torch.zeros(5_000_000)}}, "embedding_too_large"),
        ({"string_to_param": {}}, "unknown_format"),
        ([ROWS], "unknown_format"),
        ({"emb_params": ROWS * float("nan")}, "unknown_format"),
    ],
)
def test_what_is_no_embedding_is_refused(tmp_path: Path, stored: Any, code: str) -> None:
    with raises(LoraFileError, code=code):
        read_lora(save(tmp_path / "a.pt", stored), torch_embedding=True)


def test_where_a_lora_is_expected_pickles_are_refused_as_ever(tmp_path: Path) -> None:
    with raises(LoraFileError, code="pickle"):
        read_lora(save(tmp_path / "a.pt", {"emb_params": ROWS}))
