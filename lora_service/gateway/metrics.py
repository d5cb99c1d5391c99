"""Numbers for Prometheus."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import func, select

from lora_service.gateway.database.tables import Delivery, Job
from lora_service.gateway.gateway import Gateway

_SECONDS = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 300, 900, 3600, 4 * 3600)


class Metrics:
    """The numbers of one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self.registry = CollectorRegistry()
        self.wait = Histogram(
            "lora_gateway_wait_seconds", "Seconds from a job's creation to its begin", ["engine"],
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.run = Histogram(
            "lora_gateway_run_seconds", "Seconds from a job's begin to its end", ["engine", "status"],
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.loras = Counter(
            "lora_gateway_loras", "LoRAs of predictions, by where they were found", ["place"], registry=self.registry
        )
        self.registry.register(_Stored(gateway))

    def count_loras(self, metrics: Mapping[str, Any]) -> None:
        """Count a prediction's LoRAs, where its server says of how many it had them in memory."""
        count, hits = metrics.get("loras"), metrics.get("loras_in_memory")
        if isinstance(count, int) and isinstance(hits, int) and 0 <= hits <= count:
            self.loras.labels("memory").inc(hits)
            self.loras.labels("read").inc(count - hits)


class _Stored(Collector):
    """Collects the values that the database and the process have at the moment of asking."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def collect(self) -> Iterator[GaugeMetricFamily]:
        jobs = GaugeMetricFamily("lora_gateway_jobs", "Jobs in the database", labels=["engine", "status"])
        queue = GaugeMetricFamily("lora_gateway_queue_length", "Jobs that wait", labels=["engine"])
        with self._gateway.database.read() as session:
            counts = session.execute(select(Job.engine, Job.status, func.count()).group_by(Job.engine, Job.status))
            for engine, status, count in counts:
                jobs.add_metric([engine, status], count)
            waiting = (
                select(Job.engine, func.count())
                .where(Job.status == "starting", Job.claimed.is_(False))
                .group_by(Job.engine)
            )
            for engine, count in session.execute(waiting):
                queue.add_metric([engine], count)
            webhooks = session.scalar(select(func.count()).select_from(Delivery)) or 0
        yield jobs
        yield queue
        yield GaugeMetricFamily("lora_gateway_webhooks_waiting", "Webhooks that were not taken yet", value=webhooks)
        running = len(self._gateway.inboxes)
        yield GaugeMetricFamily("lora_gateway_jobs_running", "Jobs that servers have", value=running)
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        yield GaugeMetricFamily("lora_gateway_peak_memory_bytes", "Peak resident memory of the gateway", value=peak)
