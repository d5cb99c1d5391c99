"""Fixtures of the tests of downloads."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_service.downloads.fetcher import Fetcher
from tests.downloads.link_fakes import FakeSites


@pytest.fixture
def fetcher(sites: FakeSites, tmp_path: Path) -> Fetcher:
    return sites.fetcher(tmp_path / "cache")


@pytest.fixture(autouse=True)
def _no_tokens_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "CIVITAI_TOKEN", "ALLOW_PRIVATE_ADDRESSES", "MAX_DOWNLOAD_BYTES"):
        monkeypatch.delenv(name, raising=False)
