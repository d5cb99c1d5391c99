"""The servers of this machine that a gateway is given."""

from __future__ import annotations

from pathlib import Path

from lora_service.errors import SettingError
from lora_service.gateway.gateway import Gateway
from lora_service.gateway.http_server import engines
from lora_service.gateway.settings import GatewaySettings
from lora_service.settings import Settings
from tests.errors import raises


def test_a_server_of_one_device_does_not_train_on_several(tmp_path: Path) -> None:
    settings = GatewaySettings(gateway_folder=tmp_path, gateway_devices=("0", "1"))
    gateway = Gateway.open(settings, Settings(train_processes=2), "127.0.0.1", 8000)
    try:
        with raises(SettingError, field="GATEWAY_DEVICES"):
            engines(gateway, None, {})  # type: ignore[arg-type]
        found = engines(gateway, None, {"train": "http://10.0.0.8:5000"})  # type: ignore[arg-type]
        assert [each.kind for each in found] == ["predict", "predict", "train"]
    finally:
        gateway.database.close()
