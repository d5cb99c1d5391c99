"""Values and names in messages: cut, printable, on one line."""

from __future__ import annotations

import pytest

from lora_service.errors import MAX_QUOTED, InputError, LoraServiceError, quote, shorten
from lora_service.settings import Settings
from lora_service.training.inputs.config import TrainConfig
from tests.errors import raises


@pytest.mark.parametrize("value", ["x" * 20_000_000, b"x" * 1000, ["x" * 1000], {"x": "y" * 1000}, "\0" * 1000])
@pytest.mark.attack("long error texts (G2)")
def test_quoted_values_are_cut_and_printable(value: object) -> None:
    text = quote(value)
    assert len(text) <= MAX_QUOTED
    assert text.isprintable()
    assert "…" in text


def test_short_values_are_quoted_whole() -> None:
    assert [quote(value) for value in ("dog", 3, None, "a\nb")] == ["'dog'", "3", "None", "'a\\nb'"]
    assert quote("x" * (MAX_QUOTED - 2)) == repr("x" * (MAX_QUOTED - 2))


def test_names_are_cut_and_printable() -> None:
    assert shorten("a\x1b[31m\u202eb\nc") == "a?[31m?b c"
    assert shorten("x" * 300) == "x" * 199 + "…"


@pytest.mark.attack("long error texts (G2)")
def test_messages_are_one_line_and_bounded() -> None:
    assert str(LoraServiceError("a\nb\x07")) == "a b?"
    assert len(str(LoraServiceError("x" * 10_000_000))) < 5000
    with raises(InputError, field="trigger") as caught:
        TrainConfig.of({"trigger": "x" * 10_000_000})
    assert len(str(caught.value)) < 300


@pytest.mark.attack("long error texts (G2)")
def test_settings_are_cut_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "x" * 100_000)
    with raises(InputError) as caught:
        Settings.from_environment()
    assert len(str(caught.value)) < 400
