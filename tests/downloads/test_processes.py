"""Fetches of one file by many threads and processes, and processes that are killed."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trustme

from lora_service.downloads.fetcher import Fetcher
from lora_service.downloads.resolve import resolve
from lora_service.lora.safetensors_header import read_header
from tests.downloads.link_fakes import Exchange, FakeSites, safetensors

LINK = "https://files.example.org/lora.safetensors"
REMOTE = resolve(LINK)
ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("LINK_KILLS", "10"))
CHUNK = 16 * 1024


def child(sites: FakeSites, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    certificates = folder / "ca.pem"
    sites.authority.cert_pem.write_to_path(str(certificates))
    command = [
        sys.executable,
        "-m",
        "tests.downloads.link_child",
        str(sites.port),
        str(certificates),
        str(folder / "cache"),
    ]
    return subprocess.Popen(
        [*command, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def slowly(body: bytes, seconds: float) -> object:
    """A well-behaved file whose bytes take a while."""

    def answer(exchange: Exchange) -> None:
        first = 0
        if exchange.headers.get("If-Range") == '"v1"':
            first = int(exchange.headers["Range"].removeprefix("bytes=").rstrip("-"))
        rest = body[first:]
        content_range = f"bytes {first}-{len(body) - 1}/{len(body)}"
        partly = {"Content_Range": content_range} if first else {}
        exchange.start(206 if first else 200, Content_Length=str(len(rest)), ETag='"v1"', **partly)
        for start in range(0, len(rest), CHUNK):
            exchange.wfile.write(rest[start : start + CHUNK])
            time.sleep(seconds * CHUNK / len(body))

    return answer


def test_twenty_threads_download_once(sites: FakeSites, fetcher: Fetcher) -> None:
    body = safetensors(100_000)
    sites.route("files.example.org", "/lora.safetensors", slowly(body, 0.5))  # type: ignore[arg-type]
    with ThreadPoolExecutor(20) as pool:
        paths = set(pool.map(lambda _: fetcher.fetch(REMOTE), range(20)))
    assert [path.read_bytes() for path in paths] == [body]
    assert len(sites.requests) == 1


@pytest.mark.slow
def test_four_processes_of_twenty_threads_download_once(authority: trustme.CA, tmp_path: Path) -> None:
    body = safetensors(1_000_000)
    with FakeSites(authority) as sites:
        sites.route("files.example.org", "/lora.safetensors", slowly(body, 2.0))  # type: ignore[arg-type]
        children = [child(sites, tmp_path, "threads", LINK, "20") for _ in range(4)]
        paths = {process.communicate(timeout=60)[0].strip() for process in children}
        assert [process.returncode for process in children] == [0] * 4
        assert [Path(path).read_bytes() for path in paths] == [body]
        assert len(sites.requests) == 1


@pytest.mark.slow
def test_a_process_killed_at_any_moment_leaves_only_whole_files(authority: trustme.CA, tmp_path: Path) -> None:
    """``LINK_KILLS`` says how often; the moments are spread over a fetch, its check and its storing."""
    chance = random.Random(7)
    finished = 0
    with FakeSites(authority) as sites:
        fetcher = sites.fetcher(tmp_path / "cache", lora_cache_max_bytes=20 * 1024**2)
        spawner = child(sites, tmp_path, "forks")
        for number in range(KILLS):
            body = safetensors(200_000, name=f"lora.{number}", fill=number % 251)
            link = f"https://files.example.org/{number}.safetensors"
            sites.route("files.example.org", f"/{number}.safetensors", slowly(body, 0.2))  # type: ignore[arg-type]
            finished += fetch_in_a_fork(spawner, link, kill_after=chance.uniform(0.0, 0.25))
            assert_only_whole_files(fetcher)
            assert fetcher.fetch(resolve(link)).read_bytes() == body
        spawner.communicate(timeout=10)
        assert spawner.returncode == 0
        resumed = sum("Range" in seen.headers for seen in sites.requests)
    print(f"{KILLS} kills: {finished} came after the end, {resumed} downloads were gone on with")
    assert list((tmp_path / "cache" / "partial").glob("*.part")) == []
    if KILLS >= 10:
        assert resumed > 0


@pytest.mark.slow
def test_a_process_killed_before_any_of_its_steps_leaves_only_whole_files(
    authority: trustme.CA, tmp_path: Path
) -> None:
    """The steps are all it does to files of the cache: opening, renaming, removing, locking."""
    body = safetensors(1000)
    with FakeSites(authority) as sites:
        sites.serve(LINK, body)
        spawner = child(sites, tmp_path, "forks")
        for step in range(1, 200):
            finished = fetch_in_a_fork(spawner, LINK, step=step)
            fetcher = sites.fetcher(tmp_path / "cache")
            assert_only_whole_files(fetcher)
            assert fetcher.fetch(REMOTE).read_bytes() == body
            fetcher.cache.clear()
            if finished:
                break
        spawner.communicate(timeout=10)
    print(f"{step - 1} steps, killed before each")
    assert 10 < step < 199


def fetch_in_a_fork(
    spawner: subprocess.Popen[str], link: str, *, step: int = 0, kill_after: float | None = None
) -> bool:
    """Have a link fetched by a process that is killed at a step or after a while; whether it had finished before."""
    assert spawner.stdin is not None
    assert spawner.stdout is not None
    spawner.stdin.write(f"{link} {step}\n")
    spawner.stdin.flush()
    process = int(spawner.stdout.readline())
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(process, signal.SIGKILL)
    spawner.stdin.write("reap it\n")
    spawner.stdin.flush()
    return spawner.stdout.readline().strip() == "done"


def assert_only_whole_files(fetcher: Fetcher) -> None:
    for path in (fetcher.cache.folder / "objects").glob("*"):
        read_header(path)
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem
    for entry in fetcher.cache.entries():
        assert (fetcher.cache.folder / "objects" / f"{entry.sha256}.safetensors").stat().st_size == entry.size
