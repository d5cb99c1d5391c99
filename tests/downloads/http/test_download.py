"""Servers that misbehave, and what comes of it."""

from __future__ import annotations

import gzip
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from lora_service.downloads.fetcher import Fetcher
from lora_service.downloads.resolve import resolve
from lora_service.errors import LinkError, UnreachableError
from tests.downloads.link_fakes import QUICK, Exchange, FakeSites, safetensors
from tests.errors import raises

LINK = "https://files.example.org/lora.safetensors"
REMOTE = resolve(LINK)
PLACE = ("files.example.org", "/lora.safetensors")
LORA = safetensors(100_000)
HALF = len(LORA) // 2


def in_turn(*answers: Callable[[Exchange], None]) -> Callable[[Exchange], None]:
    """One answer after the other, the last for ever."""
    left = list(answers)
    return lambda exchange: (left.pop(0) if len(left) > 1 else left[0])(exchange)


def dropping(etag: str = '"v1"', **headers: str) -> Callable[[Exchange], None]:
    """The first half of the file under the whole file's length."""
    named = {"ETag": etag} if etag else {}
    return lambda exchange: exchange.send(LORA[:HALF], announced=len(LORA), **named, **headers)


def nothing_kept(fetcher: Fetcher) -> bool:
    return not list((fetcher.cache.folder / "objects").glob("*")) and not fetcher.cache.entries()


class TestServersThatBreakOff:
    def test_the_rest_is_requested_and_appended(self, sites: FakeSites, fetcher: Fetcher) -> None:
        sites.route(*PLACE, in_turn(dropping(), lambda e: e.file(LORA)))
        assert fetcher.fetch(REMOTE).read_bytes() == LORA
        headers = sites.requests[1].headers
        assert headers["If-Range"] == '"v1"'
        # up to one chunk of what had come may be lost with the connection
        assert HALF - 65536 <= int(headers["Range"].removeprefix("bytes=").removesuffix("-")) <= HALF

    def test_a_last_modified_serves_where_there_is_no_strong_etag(self, sites: FakeSites, fetcher: Fetcher) -> None:
        stamp = "Wed, 21 Oct 2015 07:28:00 GMT"
        first = dropping('W/"v1"', Last_Modified=stamp)
        sites.route(*PLACE, in_turn(first, lambda e: e.file(LORA, etag="")))
        assert fetcher.fetch(REMOTE).read_bytes() == LORA
        assert sites.requests[1].headers["If-Range"] == stamp

    def test_a_file_that_changed_meanwhile_is_begun_again(self, sites: FakeSites, fetcher: Fetcher) -> None:
        newer = safetensors(100_000, fill=7)
        sites.route(*PLACE, in_turn(dropping(), lambda e: e.file(newer, etag='"v2"')))
        assert fetcher.fetch(REMOTE).read_bytes() == newer

    @pytest.mark.attack("hostile HTTP answers")
    def test_a_server_that_ignores_if_range_does_not_mix_two_versions(self, sites: FakeSites, fetcher: Fetcher) -> None:
        newer = safetensors(100_000, fill=7)

        def careless(exchange: Exchange) -> None:
            first = int(exchange.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
            content_range = f"bytes {first}-{len(newer) - 1}/{len(newer)}"
            exchange.send(newer[first:], 206 if first else 200, ETag='"v2"', Content_Range=content_range)

        sites.route(*PLACE, in_turn(dropping(), careless))
        assert fetcher.fetch(REMOTE).read_bytes() == newer

    def test_a_range_that_was_not_requested_is_discarded(self, sites: FakeSites, fetcher: Fetcher) -> None:
        wrong = lambda e: e.send(LORA[5:], 206, ETag='"v1"', Content_Range=f"bytes 5-{len(LORA) - 1}/*")  # noqa: E731
        sites.route(*PLACE, in_turn(dropping(), wrong, lambda e: e.file(LORA)))
        assert fetcher.fetch(REMOTE).read_bytes() == LORA

    def test_without_a_validator_the_file_is_begun_again(self, sites: FakeSites, fetcher: Fetcher) -> None:
        sites.route(*PLACE, in_turn(dropping(etag=""), lambda e: e.file(LORA)))
        assert fetcher.fetch(REMOTE).read_bytes() == LORA
        assert "Range" not in sites.requests[1].headers

    def test_a_range_that_is_refused_is_begun_again(self, sites: FakeSites, fetcher: Fetcher) -> None:
        sites.route(*PLACE, in_turn(dropping(), lambda e: e.send(b"", 416), lambda e: e.file(LORA)))
        assert fetcher.fetch(REMOTE).read_bytes() == LORA

    @pytest.mark.attack("hostile HTTP answers")
    def test_a_server_that_always_breaks_off_is_given_up(self, sites: FakeSites, fetcher: Fetcher) -> None:
        sites.route(*PLACE, dropping(etag=""))
        with raises(UnreachableError, code="connection_lost") as caught:
            fetcher.fetch(REMOTE)
        assert "'files.example.org'" in str(caught.value)
        assert len(sites.requests) == QUICK.max_attempts
        assert nothing_kept(fetcher)

    def test_the_next_fetch_resumes_where_the_last_was_given_up(self, sites: FakeSites, fetcher: Fetcher) -> None:
        sites.route(*PLACE, in_turn(dropping(), lambda e: e.send(b"", 404), lambda e: e.file(LORA)))
        with raises(LinkError, code="not_found"):
            fetcher.fetch(REMOTE)
        assert fetcher.fetch(REMOTE).read_bytes() == LORA
        assert "Range" in sites.requests[2].headers


class TestServersThatLie:
    @pytest.mark.attack("hostile HTTP answers")
    def test_a_length_that_is_too_short_is_noticed_by_the_header(self, sites: FakeSites, fetcher: Fetcher) -> None:
        sites.route(*PLACE, lambda e: e.send(LORA, announced=HALF))
        with raises(LinkError, code="not_a_lora") as caught:
            fetcher.fetch(REMOTE)
        assert "cut off" in str(caught.value)
        assert nothing_kept(fetcher)

    @pytest.mark.attack("hostile HTTP answers")
    def test_a_length_over_the_cap_is_refused_before_the_body(self, sites: FakeSites, tmp_path: Path) -> None:
        sites.route(*PLACE, lambda e: e.send(b"", announced=10 * 1024**3))
        with raises(LinkError, code="too_large") as caught:
            sites.fetcher(tmp_path, max_download_bytes=1024**2).fetch(REMOTE)
        assert "10240 MiB" in str(caught.value)
        assert " 1 MiB" in str(caught.value)

    @pytest.mark.attack("hostile HTTP answers")
    def test_a_body_without_end_is_cut_at_the_cap(self, sites: FakeSites, tmp_path: Path) -> None:
        sent = 0

        def endless(exchange: Exchange) -> None:
            nonlocal sent
            exchange.start()
            exchange.wfile.write(LORA[:1000])
            while True:
                exchange.wfile.write(bytes(65536))
                sent += 65536

        sites.route(*PLACE, endless)
        fetcher = sites.fetcher(tmp_path, max_download_bytes=1024**2)
        with raises(LinkError, code="too_large"):
            fetcher.fetch(REMOTE)
        assert list(fetcher.cache.folder.rglob("*.part")) == []
        assert sent < 30 * 1024**2

    @pytest.mark.attack("hostile HTTP answers")
    def test_a_compressed_answer_is_unpacked_within_the_cap(self, sites: FakeSites, tmp_path: Path) -> None:
        packed = gzip.compress(safetensors(2_000_000))
        sites.route(*PLACE, lambda e: e.send(packed, Content_Encoding="gzip", ETag='"v1"'))
        assert sites.fetcher(tmp_path / "a").fetch(REMOTE).read_bytes() == safetensors(2_000_000)
        with raises(LinkError, code="too_large"):
            sites.fetcher(tmp_path / "b", max_download_bytes=1024**2).fetch(REMOTE)

    @pytest.mark.parametrize("status", [204, 304, 418])
    @pytest.mark.attack("hostile HTTP answers")
    def test_an_unexpected_status_is_quoted(self, status: int, sites: FakeSites, fetcher: Fetcher) -> None:
        sites.route(*PLACE, lambda e: e.send(b"", status))
        with raises(LinkError, code="unexpected_status") as caught:
            fetcher.fetch(REMOTE)
        assert f"status {status}" in str(caught.value)

    @pytest.mark.parametrize(
        "headers",
        [
            {"Content_Length": "9" * 5000},
            {"Retry_After": "Mon, 01 Jan 0001 00:00:00 +9999"},
            {"Location": "https://[::1"},
            {"ETag": "\u00ff" * 3000},
            {"Content_Type": "text/html", "Content_Encoding": "gzip"},
            {"Content_Disposition": "attachment; filename*=no-such-charset''%ff%00; filename=\"\u00e4"},
            {"Transfer_Encoding": "chunked"},
            {f"X_{number}": "x" for number in range(300)},
        ],
        ids=lambda headers: next(iter(headers)),
    )
    @pytest.mark.parametrize("status", [200, 302, 503])
    @pytest.mark.attack("hostile HTTP answers")
    def test_headers_of_any_kind_end_in_a_sentence_or_a_file(
        self, headers: dict[str, str], status: int, sites: FakeSites, tmp_path: Path
    ) -> None:
        def answer(exchange: Exchange) -> None:
            exchange.start(status, **headers)
            exchange.wfile.write(b"<html>" + bytes(600))

        sites.route(*PLACE, answer)
        fetcher = sites.fetcher(tmp_path, replace(QUICK, max_attempts=2, read_timeout=0.5))
        for fetch in (fetcher.fetch, lambda remote: fetcher.download(remote, tmp_path / "in")):
            try:
                path = fetch(REMOTE)
            except LinkError:
                continue
            assert path.is_file()

    @pytest.mark.attack("hostile HTTP answers")
    def test_redirects_in_a_circle_and_without_end_are_told_apart(self, sites: FakeSites, fetcher: Fetcher) -> None:
        sites.route(*PLACE, lambda e: e.redirect("https://other.example.org/a"))
        sites.route("other.example.org", "/a", lambda e: e.redirect(LINK))
        with raises(LinkError, code="redirect_loop"):
            fetcher.fetch(REMOTE)
        sites.route(*PLACE, lambda e: e.redirect(f"/lora.safetensors?n={int(e.query.get('n', 0)) + 1}"))
        with raises(LinkError, code="too_many_redirects"):
            fetcher.fetch(REMOTE)

    @pytest.mark.attack("hostile HTTP answers")
    def test_a_file_of_another_kind_is_left_after_its_first_bytes(self, sites: FakeSites, fetcher: Fetcher) -> None:
        sent = []

        def picture(exchange: Exchange) -> None:
            exchange.start(Content_Length=str(10**9))
            exchange.wfile.write(b"\x89PNG\r\n\x1a\n")
            for _ in range(10**9 // 65536):
                exchange.wfile.write(bytes(65536))
                sent.append(65536)

        sites.route(*PLACE, picture)
        with raises(LinkError, code="not_a_lora") as caught:
            fetcher.fetch(REMOTE)
        assert "picture" in str(caught.value)
        assert sum(sent) < 30 * 1024**2


class TestServersThatAreBusy:
    @pytest.mark.parametrize("status", [429, 500, 502, 503])
    def test_they_are_tried_again(self, status: int, sites: FakeSites, fetcher: Fetcher) -> None:
        sites.route(*PLACE, in_turn(lambda e: e.send(b"", status), lambda e: e.file(LORA)))
        assert fetcher.fetch(REMOTE).read_bytes() == LORA

    def test_the_wait_they_ask_for_is_kept(self, sites: FakeSites, fetcher: Fetcher) -> None:
        sites.route(*PLACE, in_turn(lambda e: e.send(b"", 429, Retry_After="1"), lambda e: e.file(LORA)))
        began = time.monotonic()
        fetcher.fetch(REMOTE)
        assert time.monotonic() - began >= 1

    @pytest.mark.parametrize("form", ["seconds", "date"])
    @pytest.mark.attack("hostile HTTP answers")
    def test_a_retry_after_that_is_too_long_is_an_error(self, form: str, sites: FakeSites, fetcher: Fetcher) -> None:
        later = format_datetime(datetime.now(UTC) + timedelta(seconds=3600), usegmt=True)
        value = "3600" if form == "seconds" else later
        sites.route(*PLACE, lambda e: e.send(b"", 503, Retry_After=value))
        with raises(UnreachableError, code="server_busy") as caught:
            fetcher.fetch(REMOTE)
        assert caught.value.retry_after == pytest.approx(3600, abs=2)
        assert re.search(r"status 503.* 3(600|599) seconds", str(caught.value))
        assert len(sites.requests) == 1

    def test_a_refusal_is_not_tried_again(self, sites: FakeSites, fetcher: Fetcher) -> None:
        with raises(LinkError, code="not_found"):
            fetcher.fetch(REMOTE)
        assert len(sites.requests) == 1


class TestTime:
    @pytest.mark.attack("hostile HTTP answers")
    def test_a_server_that_stalls_is_given_up_after_each_reads_time(self, sites: FakeSites, tmp_path: Path) -> None:
        stop = threading.Event()

        def stall(exchange: Exchange) -> None:
            exchange.start(Content_Length=str(len(LORA)))
            exchange.wfile.write(LORA[:1000])
            stop.wait(10)

        sites.route(*PLACE, stall)
        with raises(UnreachableError, code="timed_out"):
            sites.fetcher(tmp_path, replace(QUICK, read_timeout=0.2, max_attempts=2)).fetch(REMOTE)
        stop.set()
        assert len(sites.requests) == 2

    @pytest.mark.parametrize("part", ["headers", "body"])
    @pytest.mark.attack("hostile HTTP answers")
    def test_a_server_that_dribbles_is_ended_by_the_time_in_all(
        self, part: str, sites: FakeSites, tmp_path: Path
    ) -> None:
        """A byte now and then keeps every single read within its time."""
        stop = threading.Event()

        def dribble(exchange: Exchange) -> None:
            if part == "body":
                exchange.start(Content_Length=str(len(LORA)))
            while not stop.wait(0.05):
                exchange.wfile.write(b"x")
                exchange.wfile.flush()

        sites.route(*PLACE, dribble)
        began = time.monotonic()
        with raises(UnreachableError, code="deadline_exceeded"):
            sites.fetcher(tmp_path, replace(QUICK, read_timeout=5, total_timeout=0.5)).fetch(REMOTE)
        stop.set()
        assert time.monotonic() - began < 4

    @pytest.mark.parametrize("where", ["connect", "headers", "body", "pause", "lock"])
    @pytest.mark.attack("hostile HTTP answers")
    def test_a_fetch_is_ended_within_a_second_of_its_deadline_wherever_it_is(
        self, where: str, sites: FakeSites, tmp_path: Path
    ) -> None:
        release = threading.Event()
        limits = replace(QUICK, read_timeout=30, connect_timeout=30, backoff=30, total_timeout=0.3)
        fetcher = sites.fetcher(tmp_path, limits)

        def hang(exchange: Exchange) -> None:
            if where == "body":
                exchange.start(Content_Length="1000")
            release.wait(10)

        sites.route(*PLACE, (lambda e: e.send(b"", 500)) if where == "pause" else hang)
        if where == "connect":
            resolver = lambda host, port: release.wait(10) and []  # noqa: E731
            fetcher = Fetcher(fetcher._settings, replace(sites.network(), resolver=resolver), limits)
        lock = fetcher.cache.lock(REMOTE.cache_key)
        if where == "lock":
            lock.acquire()
        began = time.monotonic()
        with raises(UnreachableError, code="deadline_exceeded"):
            fetcher.fetch(REMOTE)
        took = time.monotonic() - began
        release.set()
        lock.release()
        assert 0.3 <= took < 1.3

    def test_an_exception_in_the_callers_thread_leaves_a_usable_cache(self, sites: FakeSites, fetcher: Fetcher) -> None:
        """Cog cancels by a signal whose handler raises in the predictor's thread, wherever it is just then."""
        stop = threading.Event()

        class Cancelled(BaseException):
            pass

        def interrupt(number: int, frame: object) -> None:
            raise Cancelled

        def stall(exchange: Exchange) -> None:
            exchange.start(Content_Length=str(len(LORA)))
            exchange.wfile.write(LORA[:HALF])
            stop.wait(10)

        sites.route(*PLACE, stall)
        previous = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        began = time.monotonic()
        try:
            with pytest.raises(Cancelled):
                fetcher.fetch(REMOTE)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
            stop.set()
        assert time.monotonic() - began < 5
        assert nothing_kept(fetcher)
        sites.serve(LINK, LORA)
        assert fetcher.fetch(REMOTE).read_bytes() == LORA
