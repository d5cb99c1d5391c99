"""Ray's own test cluster: nodes of one machine as processes, which can be killed and started again."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from types import TracebackType
from typing import Any, Self

import psutil

from tests.gateway.running import ROOT, free_port

STORE_BYTES = 80 * 1024**2
_NOTICED_SOON = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 3,
    "worker_niceness": 0,  # Ray's own 15 would have workers starve beside other tests
}


class Nodes:
    """A head without workers, and nodes of a core each; a context in which they run.

    Args:
        count: nodes beside the head.
        cpus: cores of a node, as Ray counts them.
        durable: whether a head that is started again knows what it knew.
    """

    def __init__(self, count: int = 3, cpus: int = 2, durable: bool = False) -> None:
        self._count, self._cpus, self._port = count, cpus, free_port()
        self._folder = tempfile.mkdtemp(prefix="nodes-")
        self._environment = {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
        if durable:
            self._environment |= {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": f"{self._folder}/gcs"}
        self._before: dict[str, str | None] = {}
        self._cluster: Any = None
        self.nodes: list[Any] = []

    @property
    def address(self) -> str:
        """The address of the head."""
        return str(self._cluster.address)

    def __enter__(self) -> Self:
        from ray.cluster_utils import Cluster

        self._before = {name: os.environ.get(name) for name in self._environment}
        os.environ.update(self._environment)
        self._cluster = Cluster(shutdown_at_exit=True)
        self.start_head()
        for _ in range(self._count):
            self.add()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in [*self.nodes, self._cluster.head_node]:
            if node is not None:
                node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
        for name, value in self._before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        shutil.rmtree(self._folder, ignore_errors=True)

    def start_head(self) -> None:
        """Start the head, again on the port that it had."""
        self._cluster.add_node(
            num_cpus=0, gcs_server_port=self._port, object_store_memory=STORE_BYTES, include_dashboard=False,
            temp_dir=self._folder, _system_config=_NOTICED_SOON,
        )  # fmt: skip

    def kill_head(self) -> None:
        """End the head as a machine that loses its power would."""
        self._cluster.remove_node(self._cluster.head_node, allow_graceful=False)

    def add(self) -> Any:
        """Start one more node; two at a time would take the same names of sockets."""
        node = self._cluster.add_node(num_cpus=self._cpus, object_store_memory=STORE_BYTES)
        self.nodes.append(node)
        return node

    def replace_ended(self, seconds: float = 30.0) -> None:
        """Start nodes in place of those that end with the head within some time; a durable head keeps them."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for node in [node for node in self.nodes if not node.remaining_processes_alive()]:
                self.kill(node)
                self.add()
            time.sleep(0.5)

    def kill(self, node: Any) -> None:
        """End a node with its workers as a machine that loses its power would."""
        self.nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)


def worker_processes(nodes: Nodes, of_node: Any = None) -> list[int]:
    """The processes of workers' servers that run jobs: Cog's children below the nodes, or below one of them."""
    found = []
    for node in [of_node] if of_node else nodes.nodes:
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        for process in raylet.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "coglet" in " ".join(process.cmdline()):
                    found.append(process.pid)
    return found
