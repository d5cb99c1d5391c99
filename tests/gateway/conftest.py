"""Gateways that several tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gateway.running import RunningGateway


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway without tokens, on Cog's real servers with quick entries."""
    with RunningGateway(tmp_path_factory.mktemp("gateway")) as running:
        yield running
