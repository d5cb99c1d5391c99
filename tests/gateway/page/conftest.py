"""A browser that the tests of a module share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.gateway.page.browser import CHROMIUM, MISSING, SECONDS, chromium

expect.set_options(timeout=1000 * SECONDS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Of a module and no longer: while it runs, no other test could run an event loop in this thread."""
    if CHROMIUM is None:
        pytest.skip(MISSING)
    with chromium() as browser:
        yield browser
