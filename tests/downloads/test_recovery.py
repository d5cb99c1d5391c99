"""Downloads that are cancelled, disks that are full or read-only, and files that were damaged since."""

from __future__ import annotations

import _thread
import errno
import threading
import time
from pathlib import Path

import pytest

from lora_service.downloads.cache import Cache
from lora_service.downloads.fetcher import Fetcher
from lora_service.downloads.http import download as download_module
from lora_service.downloads.http.deadline import Deadline
from lora_service.downloads.resolve import resolve
from lora_service.errors import LinkError, UnreachableError
from tests.downloads.link_fakes import Exchange, FakeSites, safetensors
from tests.errors import raises

FILE = "https://files.example.org/a.safetensors"
LORA = safetensors()


def stall(exchange: Exchange) -> None:
    """Send the beginning of a file and then nothing for long."""
    exchange.start(200, Content_Length="1000000", ETag='"v1"')
    exchange.wfile.write(safetensors(249_000)[:1000])
    exchange.wfile.flush()
    time.sleep(8)


@pytest.mark.attack("stalled downloads (G8)")
def test_a_stalled_download_can_be_cancelled(sites: FakeSites, fetcher: Fetcher) -> None:
    sites.route("files.example.org", "/a.safetensors", stall)
    threading.Timer(0.6, _thread.interrupt_main).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        fetcher.fetch(resolve(FILE))
    assert time.monotonic() - started < 5
    sites.serve(FILE, LORA)
    assert fetcher.fetch(resolve(FILE)).read_bytes() == LORA


@pytest.mark.attack("stalled downloads (G8)")
def test_one_limit_of_time_holds_for_all_links(sites: FakeSites, fetcher: Fetcher, tmp_path: Path) -> None:
    sites.route("files.example.org", "/a.safetensors", stall)
    until = time.monotonic() + 0.5
    for _ in range(2):
        with raises(UnreachableError, code="deadline_exceeded"):
            fetcher.fetch_file(resolve(FILE), until=until)
    with raises(UnreachableError, code="deadline_exceeded"):
        fetcher.download(resolve(FILE), tmp_path, until=until)
    assert time.monotonic() - until < 5


def test_a_failure_in_the_thread_of_a_download_is_raised_where_it_is_waited_for() -> None:
    def fail() -> int:
        raise ZeroDivisionError

    with Deadline(1) as deadline, pytest.raises(ZeroDivisionError):
        deadline.run(fail)


@pytest.mark.attack("full, read-only and damaged caches (G7)")
def test_a_full_disk_is_cleared_of_what_is_not_in_use(
    sites: FakeSites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetcher = sites.fetcher(tmp_path)
    fetcher.cache = Cache(tmp_path, 10**9, grace=0)
    other = "https://files.example.org/other.safetensors"
    sites.serve(other, safetensors(300))
    old = fetcher.fetch(resolve(other))
    sites.serve(FILE, LORA)
    write = download_module.Download._write

    def full(self: object, response: object, offset: int) -> None:
        if old.exists():
            raise LinkError("no room", code="disk_full")
        write(self, response, offset)  # type: ignore[arg-type]

    monkeypatch.setattr(download_module.Download, "_write", full)
    assert fetcher.fetch(resolve(FILE)).read_bytes() == LORA
    assert not old.exists()


@pytest.mark.attack("full, read-only and damaged caches (G7)")
def test_leftover_parts_and_locks_are_within_the_limit(sites: FakeSites, tmp_path: Path) -> None:
    fetcher = sites.fetcher(tmp_path, lora_cache_max_bytes=3000)
    leftover = tmp_path / "partial" / "web-gone.part"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(bytes(5000))
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / "web-long-gone.lock").touch()
    sites.serve(FILE, LORA)
    path = fetcher.fetch(resolve(FILE))
    assert path.exists()
    assert not leftover.exists()
    assert {lock.stem for lock in (tmp_path / "locks").iterdir()} == {"cache", resolve(FILE).cache_key}


@pytest.mark.attack("full, read-only and damaged caches (G7)")
def test_a_read_only_cache_gives_what_it_has_and_says_why_it_has_no_more(
    sites: FakeSites, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites.serve(FILE, LORA)
    path = fetcher.fetch(resolve(FILE))

    def refuse(self: Cache, key: str) -> object:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Cache, "lock", refuse)
    assert fetcher.fetch(resolve(FILE)) == path
    monkeypatch.setattr(time, "time", lambda: 4e9)  # the copy is no longer fresh
    assert fetcher.fetch(resolve(FILE)) == path
    with raises(LinkError, code="cache_not_writable"):
        fetcher.fetch(resolve("https://files.example.org/b.safetensors"))


@pytest.mark.parametrize("value", ["filename*=utf%00-8''x", "filename*=idna''x", "filename*=nonsense''x"])
@pytest.mark.attack("raw Python errors (G10)")
def test_a_name_in_no_encoding_is_no_name(sites: FakeSites, fetcher: Fetcher, value: str) -> None:
    sites.serve(FILE, LORA, Content_Disposition=f"attachment; {value}")
    assert fetcher.fetch_file(resolve(FILE)).name.endswith("safetensors")


@pytest.mark.attack("raw Python errors (G10)")
def test_a_chunk_of_negative_size_is_a_broken_connection(sites: FakeSites, fetcher: Fetcher) -> None:
    def negative(exchange: Exchange) -> None:
        exchange.start(200, Transfer_Encoding="chunked")
        exchange.wfile.write(b"-5\r\nabcde\r\n0\r\n\r\n")

    sites.route("files.example.org", "/a.safetensors", negative)
    with raises(UnreachableError, code="connection_lost"):
        fetcher.fetch(resolve(FILE))


@pytest.mark.attack("raw Python errors (G10)")
def test_half_a_character_is_no_link() -> None:
    for link in ("https://example.org/\ud800", "data:,\udfff", "\ud800"):
        with raises(LinkError, code="malformed_link"):
            resolve(link)
