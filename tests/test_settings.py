"""The environment is read as a person who wrote it would expect."""

from pathlib import Path

import pytest

from lora_service.errors import SettingError
from lora_service.gateway.settings import GatewaySettings
from lora_service.settings import EnvironmentSettings, Settings
from tests.errors import raises

FOLDERS = {
    "MODEL_CACHE": Settings,
    "LORA_CACHE": Settings,
    "FACE_MODEL": Settings,
    "GATEWAY_FOLDER": GatewaySettings,
}
ADDRESSES = {"HF_ENDPOINT": Settings, "PUBLIC_URL": GatewaySettings, "CALLBACK_URL": GatewaySettings}


@pytest.mark.parametrize("name", FOLDERS)
def test_the_home_is_found_where_no_shell_read_the_value(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(name, "~/kept/here")
    assert getattr(FOLDERS[name].from_environment(), name.lower()) == tmp_path / "kept/here"


@pytest.mark.parametrize("name", FOLDERS)
def test_a_home_that_is_nobodys_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "~nobody-here/kept")
    with raises(SettingError, field=name) as caught:
        FOLDERS[name].from_environment()
    assert caught.value.value == "~nobody-here/kept"


@pytest.mark.parametrize("name", ADDRESSES)
@pytest.mark.parametrize(
    "address", ["http://[bad", "hub.example", "ftp://hub.example", "http://", "http://hub:port", "http://hub:0"]
)
def test_an_address_that_is_none_of_the_web_is_refused(
    address: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, address)
    with raises(SettingError, field=name) as caught:
        ADDRESSES[name].from_environment()
    assert repr(address) in str(caught.value)


@pytest.mark.parametrize("name", ADDRESSES)
def test_an_address_of_the_web_loses_the_slash_at_its_end(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "https://hub.example:8080/path/")
    assert getattr(ADDRESSES[name].from_environment(), name.lower()) == "https://hub.example:8080/path"


@pytest.mark.parametrize(
    ("name", "settings"), [("ALLOW_PRIVATE_ADDRESSES", Settings), ("GATEWAY_DEVICES", GatewaySettings)]
)
def test_lists_are_split_at_commas_and_spaces(
    name: str, settings: type[EnvironmentSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, " one,two,  three ")
    assert getattr(settings.from_environment(), name.lower()) == ("one", "two", "three")
