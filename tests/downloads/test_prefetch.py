"""The later files of a request are fetched while the first one is, once each, and not beyond the request."""

import contextlib
import threading
import time
from pathlib import Path

from lora_service.downloads.prefetch import Prefetch
from lora_service.downloads.remote_file import RemoteFile
from lora_service.downloads.resolve import resolve
from lora_service.errors import UnreachableError
from tests.downloads.link_fakes import FakeSites, safetensors

LINKS = ("https://files.example.org/a.safetensors", "https://other.example.org/b.safetensors")


def test_the_second_file_is_fetched_while_the_first_one_is(sites: FakeSites, tmp_path: Path) -> None:
    asked = threading.Event()
    fetcher, files = sites.fetcher(tmp_path), [resolve(link) for link in LINKS]

    def first(exchange: object) -> None:
        assert asked.wait(20)  # otherwise the second file waits for the first
        exchange.file(safetensors())  # type: ignore[attr-defined]

    def second(exchange: object) -> None:
        asked.set()
        exchange.file(safetensors(fill=1))  # type: ignore[attr-defined]

    sites.route("files.example.org", "/a.safetensors", first)
    sites.route("other.example.org", "/b.safetensors", second)
    with Prefetch(files, lambda file, cancelled: fetcher.fetch_file(file, cancelled=cancelled)):
        fetched = [fetcher.fetch_file(file).path.read_bytes() for file in files]
    assert fetched == [safetensors(), safetensors(fill=1)]
    assert len(sites.requests_to("other.example.org")) == 1


def test_a_file_that_is_still_on_its_way_at_the_end_is_given_up(sites: FakeSites, tmp_path: Path) -> None:
    started, ended = threading.Event(), threading.Event()
    fetcher, files = sites.fetcher(tmp_path), [resolve(link) for link in LINKS]

    def stall(exchange: object) -> None:
        exchange.start(200, **{"Content-Length": "1000"})  # type: ignore[attr-defined]
        started.set()
        ended.wait(20)

    sites.route("other.example.org", "/b.safetensors", stall)
    failures: list[BaseException] = []

    def fetch(file: RemoteFile, cancelled: threading.Event) -> None:
        try:
            fetcher.fetch_file(file, cancelled=cancelled)
        except UnreachableError as error:
            failures.append(error)
            raise

    with contextlib.suppress(KeyboardInterrupt), Prefetch(files, fetch):
        assert started.wait(20)
        raise KeyboardInterrupt  # as a cancelled job
    until = time.monotonic() + 20
    while any(thread.name.startswith("prefetch") for thread in threading.enumerate()) and time.monotonic() < until:
        time.sleep(0.05)
    ended.set()
    assert [error.code for error in failures if isinstance(error, UnreachableError)] == ["cancelled"]


def test_what_is_local_or_first_is_left_to_the_request() -> None:
    seen: list[str] = []
    local = RemoteFile("local", "/a", "/a")
    with Prefetch([resolve(LINKS[0]), local, resolve(LINKS[1])], lambda file, _: seen.append(file.url)):
        until = time.monotonic() + 20
        while not seen and time.monotonic() < until:
            time.sleep(0.01)
    assert seen == [LINKS[1]]
