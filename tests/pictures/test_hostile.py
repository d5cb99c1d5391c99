"""Whatever the bytes: pictures and a report, or one sentence; nothing is left behind, and nothing written elsewhere."""

from __future__ import annotations

import pytest
from hostile import Mangler, read_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_makers import png, zipped


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=2000))
def test_any_bytes(data: bytes) -> None:
    assert read_bytes(data) in ("used", "refused")


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(max_size=30), st.sampled_from([png(1, (8, 8)), b"TOK", b"", b"\0"]), max_size=6))
def test_any_names(members: dict[str, bytes]) -> None:
    read_bytes(zipped({name: data for name, data in members.items() if name.split("\0")[0]}))


def test_mangled_uploads() -> None:
    mangler = Mangler()
    assert {read_bytes(mangler.upload(seed)) for seed in range(1500)} == {"used", "refused"}


@pytest.mark.slow
def test_many_mangled_uploads() -> None:
    mangler = Mangler()
    assert {read_bytes(mangler.upload(seed)) for seed in range(1500, 20_000)} == {"used", "refused"}
