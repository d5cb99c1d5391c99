"""The environment's settings of the gateway, read once into one frozen object."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from lora_service.settings import MEBIBYTE, EnvironmentSettings, HomePath, SeparatedList, WebAddress

_DAY = 24 * 3600


class GatewaySettings(EnvironmentSettings):
    """Every environment variable the gateway reads besides those of the service."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    gateway_folder: HomePath = Path("~/.local/share/lora-service").expanduser()
    """The folder of the database, the files and the runs, where no other place is named for them."""
    database_url: str = ""
    """SQLAlchemy's URL of the database; empty: ``gateway.sqlite`` in the folder."""
    blob_store: str = ""
    """Where files are kept: a folder, or a URL that fsspec knows, like ``s3://bucket/prefix``."""
    public_url: WebAddress = ""
    """The address under which clients reach the gateway; empty: the one they asked."""
    callback_url: WebAddress = ""
    """The address under which Cog's servers reach the gateway; empty: its own on the loopback."""
    api_tokens: SecretStr = SecretStr("")
    """``user:scope:token``, comma-separated, besides those in the database; scope is read, run or admin."""
    require_tokens: Literal["auto", "yes", "no"] = "auto"
    """``auto``: wherever others than this machine can reach the gateway."""
    gateway_devices: SeparatedList[str] = ()
    """GPUs, as ``CUDA_VISIBLE_DEVICES`` names them, comma-separated: a pair of servers for each."""
    max_queue: int = Field(default=10_000, ge=1)
    """Jobs that wait or run, of all users together."""
    max_queue_per_user: int = Field(default=1_000, ge=1)
    rate_limit: int = Field(default=600, ge=1)
    """Requests of one user that are answered in a minute."""
    max_body_bytes: int = Field(default=64 * MEBIBYTE, ge=1024)
    max_upload_bytes: int = Field(default=1024 * MEBIBYTE, ge=1024)
    output_link_seconds: int = Field(default=3600, ge=10)
    """For how long the link to a file is valid."""
    keep_uploads_seconds: int = Field(default=_DAY, ge=0)
    """The time for which uploaded files are kept; 0: for ever."""
    keep_jobs_seconds: int = Field(default=30 * _DAY, ge=0)
    """The time for which inputs, logs and outputs of ended jobs are kept; 0: for ever."""
    max_job_attempts: int = Field(default=3, ge=1)
    """Most attempts of a job whose server was lost under it."""
    drain_seconds: float = Field(default=600.0, ge=0)
    """The time that running jobs may take to end after SIGTERM; those that do not are begun again at the next start."""
    ray_address: str = ""
    """With the engine ``ray``: the cluster, as ``ray.init`` takes it; empty: one of this machine alone is started."""
    ray_predict_workers: int = Field(default=1, ge=1, le=10_000)
    """The most workers that draw."""
    ray_train_workers: int = Field(default=1, ge=1, le=10_000)
    """The most workers that train."""
    ray_min_workers: int = Field(default=0, ge=0)
    """Workers that draw which are kept without work."""
    ray_idle_seconds: float = Field(default=300.0, ge=0)
    """The time for which other workers are kept without work."""
    ray_predict_gpus: float | None = Field(default=None, ge=0)
    """GPUs of a worker that draws, a fraction too; none: 1, or on a cluster of this machine alone what there is."""
    ray_train_gpus: float | None = Field(default=None, ge=0)
    """GPUs of a worker that trains."""
    ray_cpus: float = Field(default=1.0, ge=0)
    """CPU cores of a worker."""
    ray_waiting_per_worker: int = Field(default=4, ge=1)
    """Predictions that wait before one more worker is started."""
    ray_lora_passes: int = Field(default=4, ge=0)
    """The times that a prediction may be passed over by one whose LoRAs a free worker has; 0: never."""
    log_json: bool = False
    """True if each line of the log is a JSON object."""

    @property
    def database(self) -> str:
        """The database's URL."""
        return self.database_url or f"sqlite:///{self.gateway_folder / 'gateway.sqlite'}"

    @property
    def blobs(self) -> str:
        """The folder or URL of the files."""
        return self.blob_store or str(self.gateway_folder / "files")

    @property
    def runs(self) -> Path:
        """The folder of the trainings' run folders."""
        return self.gateway_folder / "runs"


def needs_tokens(settings: GatewaySettings, host: str) -> bool:
    """Return True if requests to a gateway that listens on ``host`` must bring a token."""
    if settings.require_tokens != "auto":
        return settings.require_tokens == "yes"
    return not is_loopback(host)


def is_loopback(host: str) -> bool:
    """Return True for names and addresses of this machine that others cannot reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
