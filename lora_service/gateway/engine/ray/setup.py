"""The engines of a gateway on Ray, from its settings."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import httpx

from lora_service.errors import SettingError
from lora_service.gateway.engine.jobs import EngineKind, JobEngine
from lora_service.gateway.engine.ray.cluster import RayCluster
from lora_service.gateway.engine.ray.engine import RayEngine, Scale
from lora_service.gateway.engine.ray.messages import WorkerSpec
from lora_service.gateway.gateway import QUEUE, Gateway
from lora_service.gateway.settings import GatewaySettings, is_loopback
from lora_service.serving import entries
from lora_service.settings import Settings


def ray_engines(
    gateway: Gateway, client: httpx.AsyncClient, address: str = "", home: Path = entries.HOME
) -> list[JobEngine]:
    """Return an engine for each kind of job, both on one cluster.

    Args:
        address: of the cluster; empty: that of the settings, else one is started on this machine.
        home: the folder of the entries, the same on all machines.

    Raises:
        SettingError: Ray is not installed, or settings do not fit each other.
    """
    settings = gateway.settings
    address = address or settings.ray_address
    _check(settings, gateway, address)
    logs = settings.gateway_folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    cluster = RayCluster(address, logs / "ray.log")

    service = gateway.service
    # Ray keeps GPUs free for so many processes, whatever a machine's own environment says.
    fixed = {"BASE_MODEL": service.base_model, "TRAIN_PROCESSES": str(service.train_processes)}

    def engine(kind: EngineKind, scale: Scale, gpus: float | None) -> RayEngine:
        processes = service.train_processes if kind == "train" else 1
        spec = WorkerSpec(
            kind=kind, home="" if home == entries.HOME else str(home), upload_url=gateway.upload_url,
            fixed={**gateway.server_environment(), **fixed}, given=_given(),
            processes=processes, cpus=settings.ray_cpus * processes, gpus=gpus,
        )  # fmt: skip
        return RayEngine(spec, cluster, scale, client, lambda: gateway.hub.notify(QUEUE))

    predict = Scale(
        settings.ray_min_workers, settings.ray_predict_workers, settings.ray_waiting_per_worker,
        settings.ray_idle_seconds, settings.ray_lora_passes,
    )  # fmt: skip
    train = Scale(0, settings.ray_train_workers, idle_seconds=settings.ray_idle_seconds, passes=0)
    return [engine("predict", predict, settings.ray_predict_gpus), engine("train", train, settings.ray_train_gpus)]


def _check(settings: GatewaySettings, gateway: Gateway, address: str) -> None:
    if importlib.util.find_spec("ray") is None:
        raise SettingError("--engine", "ray", "local, or Ray installed beside it: pip install -e '.[cluster]'")
    if settings.gateway_devices:
        expected = "empty with --engine ray, which gives each worker its GPUs (RAY_PREDICT_WORKERS, RAY_PREDICT_GPUS)"
        raise SettingError("GATEWAY_DEVICES", ",".join(settings.gateway_devices), expected)
    processes = gateway.service.train_processes
    if processes > 1 and settings.ray_train_gpus not in (None, 0, processes):
        expected = f"empty, 0 or {processes}, as TRAIN_PROCESSES is {processes} and each has a GPU of its own"
        raise SettingError("RAY_TRAIN_GPUS", f"{settings.ray_train_gpus:g}", expected)
    if settings.ray_min_workers > settings.ray_predict_workers:
        expected = f"at most RAY_PREDICT_WORKERS, which is {settings.ray_predict_workers}"
        raise SettingError("RAY_MIN_WORKERS", str(settings.ray_min_workers), expected)
    host = httpx.URL(gateway.callback_url).host
    if address and not settings.callback_url and is_loopback(host) and not _is_here(address):
        expected = "the address of this gateway for the cluster's other machines, like http://10.0.0.5:8000"
        raise SettingError("CALLBACK_URL", gateway.callback_url, expected)


def _is_here(address: str) -> bool:
    return address == "local" or is_loopback(address.rpartition("://")[2].rpartition(":")[0])


def _given() -> dict[str, str]:
    """Return the service's settings of this process, for machines that have none of their own."""
    names = {name.upper() for name in Settings.model_fields}
    return {name: value for name, value in os.environ.items() if name in names}
