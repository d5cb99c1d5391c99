"""The gateway's side of the keeper: it is started again when it ends, and what it says reaches the engines."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lora_service.errors import SettingError
from lora_service.gateway.engine.ray import cluster
from lora_service.gateway.engine.ray import setup as setup_of_ray
from lora_service.gateway.engine.ray.cluster import RayCluster
from lora_service.gateway.engine.ray.keeper import _lacking
from lora_service.gateway.engine.ray.messages import KeeperConfig, WorkerSpec
from lora_service.gateway.gateway import Gateway
from lora_service.gateway.settings import GatewaySettings
from lora_service.settings import Settings
from tests.gateway.running import RunningGateway
from tests.gateway.test_recovery import draw, wait_for

KEEPER = """
import json, sys
config = json.loads(sys.stdin.readline())
print(json.dumps({"event": "connected"}), flush=True)
for line in sys.stdin:
    order = json.loads(line)
    if order["do"] == "stop":
        sys.exit()
    print(json.dumps({"worker": order["worker"], "event": "ready", "url": config["address"], "node": "n"}), flush=True)
"""
AWAY = 'import json; print(json.dumps({"event": "away", "error": "no cluster there"}))'


def hear(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: int, orders: list[str]) -> list[str]:
    """Return the first events; after each, the next order is given."""
    monkeypatch.setattr(cluster, "_KEEPER", (sys.executable, "-c", script))
    monkeypatch.setattr(cluster, "_FIRST_PAUSE", 0.05)

    async def listen() -> list[str]:
        found: list[str] = []
        enough = asyncio.Event()
        connection = RayCluster("10.0.0.5:6379", tmp_path / "ray.log")

        def note(message: Mapping[str, Any]) -> None:
            found.append(message["event"])
            if message["event"] != "away" and orders:
                connection.order(orders.pop(0), "predict-1", "predict")
            if len(found) == until:
                enough.set()

        connection.add("predict", WorkerSpec("predict", "", ""), note)
        connection.open()
        connection.open()  # once
        await asyncio.wait_for(enough.wait(), 60)
        await connection.close()
        assert not connection.is_connected
        return found[:until]

    return asyncio.run(listen())


def test_a_keeper_that_ends_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = hear(KEEPER, tmp_path, monkeypatch, 5, ["start", "stop", "start"])
    assert found == ["connected", "ready", "away", "connected", "ready"]


def test_a_cluster_that_is_not_there_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert hear(AWAY, tmp_path, monkeypatch, 2, []) == ["away", "away"]
    assert "no cluster there" in caplog.text


def test_the_keeper_reads_what_the_gateway_wrote() -> None:
    spec = WorkerSpec("train", "/home", "http://x", {"A": "1"}, {"B": "2"}, 2.0, 0.5)
    values = {"address": "a", "temporary": "t", "kinds": {"train": spec.__dict__}}
    assert KeeperConfig.of(values) == KeeperConfig("a", "t", {"train": spec})


def test_a_machine_alone_says_what_it_lacks() -> None:
    assert not _lacking({"CPU": 4.0, "GPU": 2.0}, {"CPU": 4.0, "GPU": 2.0})
    assert not _lacking({"CPU": 4.0}, {"CPU": 1.0, "GPU": 0.0})
    assert _lacking({"CPU": 4.0}, {"CPU": 2.0, "GPU": 2.0}) == "needs 2 GPUs, and this machine has 0"


def engines(
    tmp_path: Path, host: str = "127.0.0.1", address: str = "", train_processes: int = 1, **values: Any
) -> list[Any]:
    settings = GatewaySettings(gateway_folder=tmp_path, **values)
    gateway = Gateway.open(settings, Settings(base_model="embedded", train_processes=train_processes), host, 8000)
    try:
        return setup_of_ray.ray_engines(gateway, None, address)  # type: ignore[arg-type]
    finally:
        gateway.database.close()


def test_there_is_an_engine_for_each_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    predict, train = engines(tmp_path, ray_predict_workers=5, ray_train_workers=2, ray_train_gpus=0.5)
    assert (predict.kind, predict.slots, train.kind, train.slots) == ("predict", 5, "train", 2)
    spec = train._cluster._kinds["train"]
    assert (spec.gpus, spec.home, spec.fixed["BASE_MODEL"], spec.given["HF_TOKEN"]) == (0.5, "", "embedded", "secret")


def test_a_worker_that_trains_in_several_processes_has_as_many_gpus_and_cores(tmp_path: Path) -> None:
    predict, train = (each._cluster._kinds[each.kind] for each in engines(tmp_path, train_processes=4, ray_cpus=2))
    assert (predict.processes, predict.cpus, predict.gpus) == (1, 2, None)
    assert (train.processes, train.cpus, train.gpus) == (4, 8, None)
    assert train.fixed["TRAIN_PROCESSES"] == "4"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"train_processes": 2, "ray_train_gpus": 0.5}, "RAY_TRAIN_GPUS"),
        ({"train_processes": 2, "ray_train_gpus": 1}, "RAY_TRAIN_GPUS"),
        ({"ray_min_workers": 2}, "RAY_MIN_WORKERS"),
        ({"gateway_devices": ("0", "1")}, "GATEWAY_DEVICES"),
        ({"address": "10.0.0.5:6379"}, "CALLBACK_URL"),
        ({"ray_address": "auto"}, "CALLBACK_URL"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, options: dict[str, Any], field: str) -> None:
    with pytest.raises(SettingError) as raised:
        engines(tmp_path, **options)
    assert raised.value.field == field
    assert engines(tmp_path, host="10.0.0.9", address="10.0.0.5:6379")
    assert engines(tmp_path, address="127.0.0.1:6379")


def test_without_ray_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(SettingError, match="cluster"):
        engines(tmp_path)


@pytest.mark.slow
def test_without_an_address_a_cluster_of_this_machine_is_started_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = Path(tempfile.mkdtemp(prefix="t-"))  # a short path: Ray's sockets are below it
    monkeypatch.setenv("TMPDIR", str(temporary))
    with RunningGateway(tmp_path / "gateway", engine="ray") as gateway:
        assert wait_for(gateway, draw(gateway), "succeeded")["output"]
        assert list(temporary.glob("lora-ray-*"))
    assert not list(temporary.glob("lora-*"))
    shutil.rmtree(temporary)


def test_the_gateway_itself_does_not_import_ray() -> None:
    code = "import sys, lora_service.gateway.engine.ray.setup; sys.exit('ray' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
