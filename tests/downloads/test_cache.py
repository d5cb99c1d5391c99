"""Files that the cache keeps, revalidates and evicts."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lora_service.downloads.cache import Cache, CachedFile
from lora_service.downloads.fetcher import Fetcher
from lora_service.downloads.resolve import resolve
from lora_service.errors import LinkError
from tests.downloads.link_fakes import QUICK, Exchange, FakeSites, safetensors
from tests.errors import raises

LINK = "https://files.example.org/lora.safetensors"
REMOTE = resolve(LINK)
STALE = replace(QUICK, max_age=0.0, max_attempts=2)
LORA = safetensors(1000)


def keep(cache: Cache, key: str, size: int, *, age: float) -> Path:
    """Store a file of so many bytes that was last used so many seconds ago."""
    partial = cache.partial(key)
    partial.begin("")
    partial.path.write_bytes(key.encode().ljust(size, b"."))
    path = cache.store(CachedFile(key=key, link=key, sha256="", size=0), partial)
    os.utime(path, (time.time() - age,) * 2)
    return path


class TestNewness:
    def test_a_stale_file_is_confirmed_and_not_sent_again(self, sites: FakeSites, tmp_path: Path) -> None:
        sites.serve(LINK, LORA)
        fetcher = sites.fetcher(tmp_path, STALE)
        assert fetcher.fetch(REMOTE) == fetcher.fetch(REMOTE)
        assert [seen.headers.get("If-None-Match") for seen in sites.requests] == [None, '"v1"']

    def test_a_confirmed_file_is_fresh_again(self, sites: FakeSites, tmp_path: Path) -> None:
        sites.serve(LINK, LORA)
        sites.fetcher(tmp_path).fetch(REMOTE)
        sites.fetcher(tmp_path, STALE).fetch(REMOTE)
        sites.fetcher(tmp_path).fetch(REMOTE)
        assert len(sites.requests) == 2

    @pytest.mark.parametrize("stamp", [{"ETag": '"v1"'}, {"Last_Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}])
    def test_a_server_that_sends_an_unchanged_file_anyway_is_not_listened_to(
        self, stamp: dict[str, str], sites: FakeSites, tmp_path: Path
    ) -> None:
        bodies = [LORA, b"not read"]
        sites.route("files.example.org", "/lora.safetensors", lambda e: e.send(bodies.pop(0), **stamp))
        fetcher = sites.fetcher(tmp_path, STALE)
        path = fetcher.fetch(REMOTE)
        assert fetcher.fetch(REMOTE) == path
        assert path.read_bytes() == LORA
        assert bodies == []

    def test_a_newer_file_takes_the_place_of_the_old(self, sites: FakeSites, tmp_path: Path) -> None:
        newer = safetensors(1000, fill=1)
        fetcher = sites.fetcher(tmp_path, STALE)
        sites.serve(LINK, LORA)
        fetcher.fetch(REMOTE)
        sites.serve(LINK, newer, etag='"v2"')
        assert fetcher.fetch(REMOTE).read_bytes() == newer
        assert [entry.etag for entry in fetcher.cache.entries()] == ['"v2"']

    def test_a_stale_file_is_better_than_none_when_the_server_is_away(
        self, sites: FakeSites, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        fetcher = sites.fetcher(tmp_path, STALE)
        sites.serve(LINK, LORA)
        path = fetcher.fetch(REMOTE)
        sites.route("files.example.org", "/lora.safetensors", lambda e: e.send(b"", 503))
        assert fetcher.fetch(REMOTE) == path
        assert "The copy in the cache is used." in caplog.text

    def test_a_file_that_is_gone_is_not_given_out_any_more(self, sites: FakeSites, tmp_path: Path) -> None:
        fetcher = sites.fetcher(tmp_path, STALE)
        sites.serve(LINK, LORA)
        fetcher.fetch(REMOTE)
        sites.routes.clear()
        with raises(LinkError, code="not_found"):
            fetcher.fetch(REMOTE)


class TestContent:
    def test_two_links_to_the_same_bytes_share_one_file(self, sites: FakeSites, fetcher: Fetcher) -> None:
        other = "https://other.example.org/copy.safetensors"
        sites.serve(LINK, LORA)
        sites.serve(other, LORA)
        assert fetcher.fetch(REMOTE) == fetcher.fetch(resolve(other))
        assert fetcher.cache.size() == len(LORA)
        assert len(fetcher.cache.entries()) == 2

    def test_a_data_uri_is_checked_and_kept_like_a_file(self, fetcher: Fetcher) -> None:
        from base64 import b64encode

        link = f"data:application/octet-stream;base64,{b64encode(LORA).decode()}"
        assert fetcher.fetch(resolve(link)).read_bytes() == LORA
        with raises(LinkError, code="not_a_lora"):
            fetcher.fetch(resolve(f"data:;base64,{b64encode(LORA[:-1]).decode()}"))

    @pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": 1}', '{"unknown": 1}'])
    @pytest.mark.attack("full, read-only and damaged caches (G7)")
    def test_an_unreadable_entry_is_fetched_again(self, damage: str, sites: FakeSites, fetcher: Fetcher) -> None:
        sites.serve(LINK, LORA)
        fetcher.fetch(REMOTE)
        (entry,) = (fetcher.cache.folder / "entries").glob("*.json")
        entry.write_text(damage)
        assert fetcher.cache.entries() == []
        assert fetcher.fetch(REMOTE).read_bytes() == LORA
        assert json.loads(entry.read_text())["size"] == len(LORA)

    @pytest.mark.parametrize("harm", ["gone", "short"])
    @pytest.mark.attack("full, read-only and damaged caches (G7)")
    def test_an_object_that_is_gone_or_short_is_fetched_again(
        self, harm: str, sites: FakeSites, fetcher: Fetcher
    ) -> None:
        sites.serve(LINK, LORA)
        path = fetcher.fetch(REMOTE)
        path.unlink() if harm == "gone" else path.write_bytes(LORA[:-1])
        assert fetcher.fetch(REMOTE).read_bytes() == LORA

    def test_the_checked_file_itself_takes_its_place_at_once(self, tmp_path: Path) -> None:
        cache = Cache(tmp_path, max_bytes=1000)
        partial = cache.partial("a")
        partial.path.write_bytes(b"whole")
        checked = partial.path.stat().st_ino
        assert cache.store(CachedFile(key="a", link="a", sha256="", size=0), partial).stat().st_ino == checked


class TestRoom:
    def test_the_least_recently_used_go_first_and_only_as_many_as_needed(self, tmp_path: Path) -> None:
        cache = Cache(tmp_path, max_bytes=300)
        old, older, used = (keep(cache, key, 100, age=age) for key, age in (("a", 200), ("b", 300), ("c", 250)))
        entry = cache.find("c")
        assert entry is not None
        assert cache.use(entry) == used
        newest = keep(cache, "d", 150, age=0)
        assert [path.exists() for path in (old, older, used, newest)] == [False, False, True, True]
        assert {entry.key for entry in cache.entries()} == {"c", "d"}
        assert cache.size() == 250

    def test_what_was_used_a_moment_ago_stays_so_that_it_can_be_opened(self, tmp_path: Path) -> None:
        cache = Cache(tmp_path, max_bytes=100)
        first = keep(cache, "a", 100, age=5)
        second = keep(cache, "b", 100, age=0)
        assert first.exists()
        assert second.exists()

    def test_a_file_larger_than_the_cache_is_kept_until_the_next(self, tmp_path: Path) -> None:
        cache = Cache(tmp_path, max_bytes=10, grace=0.0)
        first = keep(cache, "a", 100, age=5)
        assert first.exists()
        second = keep(cache, "b", 100, age=0)
        assert (first.exists(), second.exists()) == (False, True)

    def test_partial_files_that_nobody_works_on_go_after_a_day(self, tmp_path: Path) -> None:
        cache = Cache(tmp_path, max_bytes=1000)
        day = time.time() - 25 * 3600
        left, busy, recent = (cache.partial(key) for key in ("left", "busy", "recent"))
        for partial in (left, busy, recent):
            partial.begin('"v1"')
            partial.path.write_bytes(b"half")
        for partial in (left, busy):
            os.utime(partial.path, (day, day))
        with cache.lock("busy"):
            keep(cache, "a", 10, age=0)
        assert [partial.size for partial in (left, busy, recent)] == [0, 4, 4]

    def test_clearing_leaves_nothing_but_what_is_being_fetched(self, tmp_path: Path) -> None:
        cache = Cache(tmp_path, max_bytes=1000)
        keep(cache, "a", 10, age=0)
        for key in ("left", "busy"):
            cache.partial(key).path.write_bytes(b"half")
        with cache.lock("busy"):
            assert cache.clear() == 1
        assert cache.entries() == []
        assert [path.name for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"] == ["busy.part"]

    def test_clearing_while_a_link_is_fetched_does_not_disturb_it(self, sites: FakeSites, fetcher: Fetcher) -> None:
        def answer(exchange: Exchange) -> None:
            fetcher.cache.clear()
            exchange.file(LORA)

        sites.route("files.example.org", "/lora.safetensors", answer)
        assert fetcher.fetch(REMOTE).read_bytes() == LORA
        assert fetcher.cache.find(REMOTE.cache_key) is not None


@pytest.mark.attack("full, read-only and damaged caches (G7)")
def test_a_full_disk_has_a_code_of_its_own(sites: FakeSites, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    sites.serve(LINK, LORA)
    partial = fetcher.cache.partial(REMOTE.cache_key)
    partial.path.symlink_to("/dev/full")
    monkeypatch.setattr(type(partial), "begin", lambda self, validator: None)
    with raises(LinkError, code="disk_full"):
        fetcher.fetch(REMOTE)
