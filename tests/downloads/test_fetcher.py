"""The way of a file into the cache."""

from __future__ import annotations

from pathlib import Path

from lora_service.downloads.fetcher import Fetcher
from tests.downloads.link_fakes import FakeSites, safetensors

FILE = "https://files.example.org/lora.safetensors"


def test_a_file_is_fetched_once_and_then_comes_from_the_cache(sites: FakeSites, fetcher: Fetcher) -> None:
    sites.serve(FILE, safetensors())
    first, second = fetcher.fetch(FILE), fetcher.fetch(FILE)
    assert first == second
    assert first.read_bytes() == safetensors()
    assert len(sites.requests) == 1


def test_a_picture_goes_under_its_own_name_into_the_folder(sites: FakeSites, fetcher: Fetcher, tmp_path: Path) -> None:
    sites.serve("https://files.example.org/a%20cat.png", b"\x89PNG")
    got = [fetcher.download("https://files.example.org/a%20cat.png", tmp_path / "in") for _ in range(2)]
    assert [path.name for path in got] == ["a cat.png", "a cat-2.png"]
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == ["a cat-2.png", "a cat.png"]
