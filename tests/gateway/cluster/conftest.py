"""A gateway whose trainings last."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.cluster.held_training import HeldEngine
from tests.gateway.in_process import Running, ScriptedEngine, run_gateway


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Running, HeldEngine]]:
    engine = HeldEngine()
    with run_gateway(tmp_path / "gateway", engines=[ScriptedEngine(), engine]) as running:
        yield running, engine
