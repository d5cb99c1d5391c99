"""The environment is read as a person who wrote it would expect."""

from pathlib import Path

import pytest

from lora_service.errors import InputError
from lora_service.settings import Settings

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
    with pytest.raises(InputError, match=f"{name} is '~nobody-here/kept', but it must be a path under a home"):
        Settings.from_environment()
