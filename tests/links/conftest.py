"""What the tests of links share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from link_fakes import FakeSites

from lora_service.links.fetcher import Fetcher


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """A certificate authority that only these tests trust."""
    return trustme.CA()


@pytest.fixture
def sites(authority: trustme.CA) -> Iterator[FakeSites]:
    with FakeSites(authority) as fake:
        yield fake


@pytest.fixture
def fetcher(sites: FakeSites, tmp_path: Path) -> Fetcher:
    return sites.fetcher(tmp_path / "cache")


@pytest.fixture(autouse=True)
def _no_tokens_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "CIVITAI_TOKEN", "ALLOW_PRIVATE_ADDRESSES", "MAX_DOWNLOAD_BYTES"):
        monkeypatch.delenv(name, raising=False)
