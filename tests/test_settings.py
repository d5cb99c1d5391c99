"""The environment is read as a person who wrote it would expect."""

from pathlib import Path

import pytest

from lora_service.errors import SettingError
from lora_service.settings import Settings
from tests.errors import raises

FOLDERS = ("MODEL_CACHE", "LORA_CACHE", "FACE_MODEL")


@pytest.mark.parametrize("name", FOLDERS)
def test_the_home_is_found_where_no_shell_read_the_value(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(name, "~/kept/here")
    assert getattr(Settings.from_environment(), name.lower()) == tmp_path / "kept/here"


@pytest.mark.parametrize("name", FOLDERS)
def test_a_home_that_is_nobodys_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "~nobody-here/kept")
    with raises(SettingError, field=name) as caught:
        Settings.from_environment()
    assert caught.value.value == "~nobody-here/kept"
