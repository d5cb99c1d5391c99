"""Tokens go to their own host and appear nowhere else."""

from __future__ import annotations

import logging
import traceback
from pathlib import Path

import pytest

from lora_service.downloads.auth import check_one_host, select_token
from lora_service.downloads.fetcher import Fetcher
from lora_service.downloads.resolve import resolve
from lora_service.errors import LinkError, UnreachableError
from lora_service.settings import Settings
from tests.downloads.link_fakes import Exchange, FakeSites, safetensors
from tests.errors import raises

SECRET = "hf_SeCrEt0123456789"
HUB_LINK = "https://huggingface.co/o/m/blob/main/a.safetensors"
HUB_REMOTE = resolve(HUB_LINK)
HUB_PLACE = ("huggingface.co", "/o/m/resolve/main/a.safetensors")
LORA = safetensors()


@pytest.mark.parametrize(
    ("link", "api_token", "sent"),
    [
        ("o/m", None, "hf_own"),
        ("o/m", "hf_mine", "hf_mine"),
        ("o/m", "  hf_mine\n", "hf_mine"),
        ("https://civitai.com/models/1", None, "civitai-own"),
        ("https://civitai.com/models/1", "mine", "mine"),
        ("https://civitai.com/models/1?token=linked", None, "linked"),
        ("https://civitai.com/models/1?token=linked", "mine", "mine"),
        ("https://civitai.com/models/1", "hf_mine", "civitai-own"),
        ("https://example.org/a", None, ""),
        ("https://example.org/a", "mine", "mine"),
        ("https://example.org/a", "hf_mine", ""),
        ("http://example.org/a", "mine", ""),
        ("https://drive.google.com/open?id=abcdef", "mine", ""),
        ("https://github.com/o/r/blob/main/a", "mine", "mine"),
    ],
)
def test_each_link_gets_the_token_of_its_own_site(link: str, api_token: str | None, sent: str) -> None:
    settings = Settings(hf_token="hf_own", civitai_token="civitai-own")  # type: ignore[arg-type]
    assert select_token(resolve(link), api_token, settings) == sent


@pytest.mark.parametrize("token", ["a b", "a\r\nX-Evil: 1", "ключ"])
@pytest.mark.attack("tokens in errors and logs (G3)")
def test_a_token_that_cannot_be_one_is_refused_without_being_shown(token: str) -> None:
    with raises(LinkError, code="malformed_token", field="api_token") as caught:
        select_token(resolve("o/m"), token, Settings())
    assert token not in str(caught.value)


def ok(exchange: Exchange) -> None:
    exchange.redirect("https://cdn.example.org/blob")


@pytest.mark.parametrize(
    "answer",
    [
        ok,
        lambda e: e.send(b"{}", 401),
        lambda e: e.send(b"{}", 403),
        lambda e: e.send(b"", 500),
        lambda e: e.send(b"short", announced=100),
        lambda e: e.page(200, "page"),
        lambda e: e.redirect("https://[broken"),
    ],
    ids=["ok", "401", "403", "500", "drop", "page", "redirect"],
)
@pytest.mark.attack("tokens in errors and logs (G3)")
def test_a_token_is_in_no_log_no_error_and_no_file(
    answer: object, sites: FakeSites, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    sites.route(*HUB_PLACE, answer)  # type: ignore[arg-type]
    sites.serve("https://cdn.example.org/blob", LORA)
    fetcher = sites.fetcher(tmp_path, hf_token=SECRET)
    shown = ""
    try:
        fetcher.fetch(HUB_REMOTE, token=SECRET)
    except LinkError:
        shown = traceback.format_exc()
    assert sites.requests[0].token == f"Bearer {SECRET}"
    assert all(not seen.token for seen in sites.requests_to("cdn.example.org"))
    kept = [str(path) for path in tmp_path.rglob("*")]
    kept += [path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file()]
    for place in (shown, caplog.text, repr(fetcher), repr(HUB_REMOTE), *kept):
        assert SECRET not in place


class TestFilesThatATokenOpened:
    def guarded_file(self, sites: FakeSites) -> None:
        def answer(exchange: Exchange) -> None:
            if exchange.headers.get("Authorization") == f"Bearer {SECRET}":
                exchange.file(LORA)
            else:
                exchange.send(b"{}", 401)

        sites.route(*HUB_PLACE, answer)

    @pytest.mark.attack("tokens in errors and logs (G3)")
    def test_are_given_to_nobody_else_from_the_cache(self, sites: FakeSites, fetcher: Fetcher) -> None:
        self.guarded_file(sites)
        fetcher.fetch(HUB_REMOTE, token=SECRET)
        for token, code in ((None, "sign_in_required"), ("hf_other", "token_rejected")):
            with raises(LinkError, code=code):
                fetcher.fetch(HUB_REMOTE, token=token)

    def test_come_from_the_cache_for_the_same_token(self, sites: FakeSites, fetcher: Fetcher) -> None:
        self.guarded_file(sites)
        paths = {fetcher.fetch(HUB_REMOTE, token=SECRET) for _ in range(3)}
        assert len(paths) == 1
        assert len(sites.requests) == 1

    def test_are_confirmed_and_not_sent_again_to_another_process_with_the_token(
        self, sites: FakeSites, tmp_path: Path
    ) -> None:
        self.guarded_file(sites)
        for _ in range(2):
            sites.fetcher(tmp_path).fetch(HUB_REMOTE, token=SECRET)
        assert [seen.headers.get("If-None-Match") for seen in sites.requests] == [None, '"v1"']

    def test_are_not_given_out_when_the_server_is_away(self, sites: FakeSites, tmp_path: Path) -> None:
        self.guarded_file(sites)
        sites.fetcher(tmp_path).fetch(HUB_REMOTE, token=SECRET)
        sites.route(*HUB_PLACE, lambda e: e.send(b"", 500))
        with raises(UnreachableError, code="server_busy"):
            sites.fetcher(tmp_path).fetch(HUB_REMOTE)


@pytest.mark.attack("tokens in errors and logs (G3)")
def test_a_token_that_several_hosts_would_get_is_refused() -> None:
    settings = Settings()
    hub, other, drive = (
        resolve(text) for text in ("o/m", "https://example.org/a", "https://drive.google.com/open?id=ab")
    )
    with raises(LinkError, code="token_for_several_hosts", field="api_token") as caught:
        check_one_host([hub, other], "mine", settings)
    assert "example.org and huggingface.co" in str(caught.value)
    check_one_host([hub, other], "hf_mine", settings)
    check_one_host([hub, drive, hub], "mine", settings)
    check_one_host([hub, other], None, settings)
