"""The page Library in a real browser: look, convert, share, delete."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, expect

from lora_service.lora.files import read_lora
from lora_service.lora.header_facts import REPORT_KEY, THUMBNAIL_KEY, TRIGGER_KEY
from tests.gateway.in_process import Running, run_gateway
from tests.gateway.page.browser import PHONE, Visit
from tests.gateway.page.drawing import DrawingEngine, picture
from tests.gateway.scripted_training import TrainingEngine, begin, lora_file

LORA = lora_file(
    **{
        TRIGGER_KEY: "zwx creature",
        THUMBNAIL_KEY: picture((200, 30, 30)),
        REPORT_KEY: json.dumps({"losses": {"stage 2": [0.5, 0.25]}}),
        "ss_sd_model_name": "Stable Diffusion 1.5",
    }
)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    training = TrainingEngine("train", runs=tmp_path / "runs", lora=LORA, may_end=True)
    with run_gateway(tmp_path, engines=[DrawingEngine(), training], rate_limit=100_000) as running:
        running.finished(begin(running, "", destination="local/blob"))
        yield running


@pytest.mark.parametrize("viewport", [None, PHONE])
def test_what_was_taught_is_looked_into_and_converted(
    running: Running, browser: Browser, tmp_path: Path, viewport: dict[str, int] | None
) -> None:
    with Visit.begin(browser, running.url, **({"viewport": viewport} if viewport else {})) as visit:
        page = visit.open("/library")
        book = page.get_by_role("article", name="blob")
        expect(book.get_by_text("zwx creature")).to_be_visible()
        expect(book.get_by_text("Stable Diffusion 1.5")).to_be_visible()
        expect(book.get_by_role("img", name="Drawn with blob")).to_have_js_property("naturalWidth", 64)
        visit.check()
        book.get_by_role("button", name="Details of blob").click()
        details = page.get_by_role("dialog")
        expect(details.get_by_role("definition").get_by_text("kohya", exact=True)).to_be_visible()
        expect(details.get_by_role("img", name="Samples of stage 2 at step 3")).to_be_visible()
        expect(details.locator("svg.chart")).to_be_visible()
        visit.check()
        details.get_by_label("Layout").select_option("diffusers")
        details.get_by_role("button", name="Convert").click()
        with page.expect_download() as download:
            details.get_by_role("link", name="diffusers").click()
        path = tmp_path / "converted.safetensors"
        download.value.save_as(path)
        assert read_lora(path).format == "diffusers"
        assert read_lora(path).trigger == "zwx creature"


def test_it_is_shared_and_deleted(running: Running, browser: Browser) -> None:
    with Visit.begin(browser, running.url) as visit:
        page = visit.open("/library")
        page.get_by_role("button", name="Details of blob").click()
        details = page.get_by_role("dialog")
        details.get_by_label("For how long").select_option("an hour")
        details.get_by_role("button", name="Make a link").click()
        link = details.get_by_label("The shared link").input_value()
        assert httpx.get(link).content == LORA
        details.get_by_role("button", name="Delete …").click()
        page.get_by_role("button", name="No", exact=True).click()
        assert httpx.get(link).status_code == 200
        details.get_by_role("button", name="Delete …").click()
        page.get_by_role("button", name="Delete it").click()
        expect(page.get_by_text("Nothing is taught yet.")).to_be_visible()
        assert httpx.get(link).status_code == 404
        visit.check()


def test_a_file_of_ones_own_is_looked_into(running: Running, browser: Browser) -> None:
    with Visit.begin(browser, running.url, expected="422") as visit:
        page = visit.open("/library")
        page.get_by_label("Look into a file").set_input_files(
            {"name": "mine.safetensors", "mimeType": "application/octet-stream", "buffer": LORA}
        )
        details = page.get_by_role("dialog")
        expect(details.get_by_role("heading", name="mine.safetensors")).to_be_visible()
        expect(details.locator("svg.chart")).to_be_visible()
        visit.check()
        details.get_by_role("button", name="Close").click()
        page.get_by_label("Look into a file").set_input_files(
            {"name": "no.safetensors", "mimeType": "application/octet-stream", "buffer": b"no lora"}
        )
        expect(page.get_by_role("status").filter(has_text="no.safetensors")).to_be_visible()
        page.get_by_label("Find").fill("nothing of that name")
        expect(page.get_by_text("Nothing of that name.")).to_be_visible()
