"""Fixtures that several packages' tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import trustme

from lora_service.serving.server import CogServer
from tests.downloads.link_fakes import FakeSites
from tests.service import Service


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip campaigns where they are not asked for by their mark or that of all attacks."""
    if config.getoption("-m") in ("attack", "campaign"):
        return
    skip = pytest.mark.skip(reason="a campaign: pytest -m campaign runs it")
    for item in items:
        if item.get_closest_marker("campaign"):
            item.add_marker(skip)


@pytest.fixture(scope="module")
def start_service() -> Iterator[Callable[..., Service]]:
    """Starts servers (arguments as for `CogServer`) that answer when they are handed out and end with the module."""
    with ExitStack() as stack:

        def start(*arguments: Any, **options: Any) -> Service:
            server = stack.enter_context(CogServer(*arguments, **options))
            server.wait_ready()
            return Service(server)

        yield start


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """A certificate authority that only these tests trust."""
    return trustme.CA()


@pytest.fixture
def sites(authority: trustme.CA) -> Iterator[FakeSites]:
    with FakeSites(authority) as fake:
        yield fake
