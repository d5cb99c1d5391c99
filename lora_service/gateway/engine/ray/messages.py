"""What the gateway and the keeper say to each other: JSON objects, one a line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lora_service.gateway.engine.jobs import EngineKind


@dataclass(frozen=True)
class WorkerSpec:
    """A kind of worker.

    Attributes:
        kind: what its server does.
        home: the folder of the entries; empty: beside the package, wherever it is installed.
        upload_url: where the server puts its output files.
        fixed: variables of the server that are the gateway's to choose.
        given: variables of the server unless its machine has its own.
        processes: those of its server that compute, on a GPU each.
        cpus, gpus: what Ray keeps free for it; None: a GPU for each process, but where the gateway itself started Ray
            and found none.
    """

    kind: EngineKind
    home: str
    upload_url: str
    fixed: Mapping[str, str] = field(default_factory=dict)
    given: Mapping[str, str] = field(default_factory=dict)
    processes: int = 1
    cpus: float = 1.0
    gpus: float | None = None


@dataclass(frozen=True)
class KeeperConfig:
    """The first line that a keeper reads.

    Attributes:
        address: of the cluster, as ``ray.init`` takes it; empty: a cluster of this machine alone is started.
        temporary: the folder of Ray's files where it is started here.
        kinds: the kinds of workers.
    """

    address: str
    temporary: str
    kinds: Mapping[str, WorkerSpec]

    @staticmethod
    def of(values: Mapping[str, Any]) -> KeeperConfig:
        """Return it as it was before it was sent."""
        kinds = {kind: WorkerSpec(**spec) for kind, spec in values["kinds"].items()}
        return KeeperConfig(values["address"], values["temporary"], kinds)
