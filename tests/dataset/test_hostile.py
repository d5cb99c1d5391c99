"""Arbitrary bytes give a dataset or a PicturesError; no file is left behind, none is written elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dataset.hostile import Mangler, read_bytes
from tests.dataset.picture_makers import png, zipped


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=2000))
def test_any_bytes(data: bytes, folder: Path) -> None:
    assert read_bytes(data, folder) in ("used", "refused")


@settings(max_examples=100, deadline=None)
@given(members=st.dictionaries(st.text(max_size=30), st.sampled_from([png(1, (8, 8)), b"TOK", b"", b"\0"]), max_size=6))
def test_any_names(members: dict[str, bytes], folder: Path) -> None:
    read_bytes(zipped({name: data for name, data in members.items() if name.split("\0")[0]}), folder)


def test_mangled_uploads(folder: Path) -> None:
    mangler = Mangler()
    assert {read_bytes(mangler.upload(seed), folder) for seed in range(1500)} == {"used", "refused"}


@pytest.mark.slow
def test_many_mangled_uploads(folder: Path) -> None:
    mangler = Mangler()
    assert {read_bytes(mangler.upload(seed), folder) for seed in range(1500, 15_000)} == {"used", "refused"}
