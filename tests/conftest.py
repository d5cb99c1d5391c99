"""Fixtures that several packages' tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from service import Service

from lora_service.serving.server import Server


@pytest.fixture(scope="module")
def start_service() -> Iterator[Callable[..., Service]]:
    """Starts servers (arguments as for `Server`) that answer when they are handed out and end with the module."""
    with ExitStack() as stack:

        def start(*arguments: Any, **options: Any) -> Service:
            server = stack.enter_context(Server(*arguments, **options))
            server.wait_ready()
            return Service(server)

        yield start
