"""The page Draw in a real browser: prompts, LoRAs, strips, grids, a picture to start from."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from lora_service.lora.header_facts import TRIGGER_KEY
from tests.gateway.in_process import Running, run_gateway
from tests.gateway.page.browser import PHONE, Visit
from tests.gateway.page.drawing import DrawingEngine, read, told
from tests.gateway.scripted_training import TrainingEngine, begin, lora_file

LORA = lora_file(**{TRIGGER_KEY: "zwx creature"})


@pytest.fixture(scope="module")
def drawing() -> DrawingEngine:
    return DrawingEngine()


@pytest.fixture(scope="module")
def running(drawing: DrawingEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("gateway")
    training = TrainingEngine("train", runs=folder / "runs", lora=LORA, may_end=True)
    with run_gateway(folder, engines=[drawing, training], rate_limit=100_000) as running:
        for name in ("blob", "moppet"):
            running.finished(begin(running, "", destination=f"local/{name}"))
        yield running


def choose(page: Page, *names: str) -> None:
    for name in names:
        page.get_by_label("Taught here").select_option(label=name)


def prompt(page: Page, text: str) -> None:
    page.get_by_role("textbox", name="Prompt", exact=True).fill(text)


def open_details(page: Page, summary: str) -> None:
    page.locator("summary", has_text=re.compile(f"^{summary}")).click()


def drawn(page: Page, drawing: DrawingEngine) -> Mapping[str, Any]:
    """Draw once; returns what the server was asked for."""
    before = len(drawing.inputs)
    page.get_by_role("button", name="Draw", exact=True).click()
    while len(drawing.inputs) == before:
        page.wait_for_timeout(20)
    return drawing.inputs[-1]


def weights(running: Running, name: str) -> str:
    return next(
        str(lora["id"])
        for lora in running.call("GET", "/v1/loras").json()["results"]
        if lora["model"] == f"local/{name}"
    )


def test_a_lora_is_drawn_with_at_three_scales(running: Running, browser: Browser) -> None:
    with Visit.begin(browser, running.url) as visit:
        page = visit.open("/draw")
        choose(page, "blob")
        prompt(page, "a photo of ")
        page.get_by_role("group", name="Put into the prompt").get_by_role("button", name="<1>").click()
        expect(page.get_by_role("textbox", name="Prompt", exact=True)).to_have_value("a photo of <1>")
        page.get_by_label("seed", exact=True).fill("40")
        page.get_by_label("Num outputs").fill("2")
        cards = page.get_by_role("article", name="a photo of <1>")
        for count, scale in enumerate(("0.3", "0.6", "1.2"), start=1):
            page.get_by_label("Scale of blob").fill(scale)
            page.get_by_role("button", name="Draw", exact=True).click()
            expect(cards).to_have_count(count)
            card = cards.first
            expect(card.locator("img")).to_have_count(2)
            expect(card.get_by_text("seed 40, 41")).to_be_visible()
            inputs = {
                "lora_urls": f"/files/{weights(running, 'blob')}",
                "lora_scales": scale,
                "prompt": "a photo of <1>",
            }
            assert read(card.locator("img"), running.url) == [told(inputs, 40), told(inputs, 41)]
        visit.check()


def test_of_several_loras_each_may_have_pictures(running: Running, drawing: DrawingEngine, browser: Browser) -> None:
    with Visit.begin(browser, running.url) as visit:
        page = visit.open("/draw")
        mode = page.get_by_label("lora mode")
        choose(page, "blob")
        expect(mode).to_be_hidden()
        choose(page, "moppet")
        prompt(page, "<1> in a garden")
        mode.select_option("each")
        page.get_by_label("seed", exact=True).fill("40")
        assert drawn(page, drawing)["lora_mode"] == "each"
        card = page.get_by_role("article", name="<1> in a garden")
        expect(card.locator("img")).to_have_count(2)
        expect(card.get_by_text("seed 40, 40, of LoRA 1, 2,")).to_be_visible()
        before = len(drawing.inputs)
        open_details(page, "Same seed")
        page.get_by_role("button", name="Draw the strip").click()
        expect(page.get_by_role("article", name="blob: <1> in a garden").locator("img").first).to_be_visible()
        assert all("lora_mode" not in each for each in drawing.inputs[before:])
        page.get_by_role("button", name="Remove moppet").click()
        expect(mode).to_be_hidden()
        assert "lora_mode" not in drawn(page, drawing)
        visit.check()


def test_a_strip_has_one_seed_and_its_scales(running: Running, drawing: DrawingEngine, browser: Browser) -> None:
    with Visit.begin(browser, running.url) as visit:
        page = visit.open("/draw")
        choose(page, "blob", "moppet")
        prompt(page, "<1> beside <2>")
        open_details(page, "Same seed")
        page.get_by_label("Of the LoRA").select_option(label="moppet")
        page.get_by_label("Scales", exact=True).first.fill("0, 0.5, 1")
        before = len(drawing.inputs)
        page.get_by_role("button", name="Draw the strip").click()
        sheet = page.get_by_role("article", name="moppet: <1> beside <2>")
        expect(sheet.locator("img")).to_have_count(3)
        asked = drawing.inputs[before:]
        assert [each["lora_scales"] for each in asked] == ["0.8|0", "0.8|0.5", "0.8|1"]
        assert len({each["seed"] for each in asked}) == 1
        assert [image.get_attribute("alt") for image in sheet.locator("img").all()] == [
            f"moppet, scale {scale}" for scale in ("0", "0.5", "1")
        ]
        assert str(asked[0]["seed"]) in sheet.inner_text()
        page.reload()
        expect(sheet.locator("img")).to_have_count(3)
        for _ in range(100):  # a page of newer jobs
            running.draw(input={"prompt": "<1>"})
        page.reload()
        expect(sheet.locator("img")).to_have_count(3)
        visit.check()


def test_a_grid_of_loras_scales_and_prompts(running: Running, browser: Browser, tmp_path: Path) -> None:
    with Visit.begin(browser, running.url) as visit:
        page = visit.open("/draw")
        choose(page, "blob")
        page.get_by_label("seed", exact=True).fill("9")
        open_details(page, "Grid of")
        page.locator("#grid-loras").get_by_label("moppet").check()
        page.locator("#grid-scales").fill("0, 1")
        page.get_by_label("Prompts, one a line").fill("a <1>\nno <1>")
        expect(page.get_by_text("8 pictures")).to_be_visible()
        page.get_by_role("button", name="Draw the grid").click()
        sheet = page.get_by_role("article", name="Grid")
        expect(sheet.locator("img")).to_have_count(8)
        expected = [
            told({"lora_urls": f"/files/{weights(running, name)}", "lora_scales": scale, "prompt": text}, 9)
            for text in ("a <1>", "no <1>") for name in ("blob", "moppet") for scale in ("0", "1")
        ]  # fmt: skip
        assert read(sheet.locator("img"), running.url) == expected
        assert len(set(expected)) == 8
        assert sheet.get_by_role("rowheader").all_inner_texts() == [
            "blob: a <1>", "moppet: a <1>", "blob: no <1>", "moppet: no <1>"
        ]  # fmt: skip
        with page.expect_download() as download:
            sheet.get_by_role("button", name="Save as one picture").click()
        download.value.save_as(tmp_path / "sheet.png")
        with Image.open(tmp_path / "sheet.png") as whole:
            assert len({color for _, color in whole.convert("RGB").getcolors(1 << 20) or ()} & set(expected)) == 8
        visit.check()


def test_a_part_of_a_picture_is_drawn_anew(running: Running, drawing: DrawingEngine, browser: Browser) -> None:
    with Visit.begin(browser, running.url) as visit:
        page = visit.open("/draw")
        open_details(page, "From a picture")
        file = io.BytesIO()
        Image.new("RGB", (200, 100), "blue").save(file, "PNG")
        page.get_by_label("Choose a picture").set_input_files(
            {"name": "blue.png", "mimeType": "image/png", "buffer": file.getvalue()}
        )
        canvas = page.get_by_role("img", name="The picture to start from, 200 × 100")
        page.get_by_label("Brush").fill("20")
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + box["height"] / 2)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + box["height"] / 2, steps=4)
        page.mouse.up()
        visit.check()
        inputs = drawn(page, drawing)
        picture, mask = (Image.open(io.BytesIO(httpx.get(inputs[name]).content)) for name in ("image", "mask"))
        assert picture.getpixel((10, 10)) == (0, 0, 255)
        assert mask.size == (200, 100)
        painted = np.asarray(mask.convert("L"))
        assert painted[50, 60:140].min() == 255
        assert painted[:35].max() == painted[65:].max() == painted[:, :30].max() == painted[:, 170:].max() == 0
        page.get_by_role("button", name="Clear paint").click()
        assert "mask" not in drawn(page, drawing)
        page.locator("#gallery").get_by_role("button", name="Start from it").first.click()
        expect(page.get_by_role("img", name="The picture to start from, 64 × 64")).to_be_visible()


def test_a_lora_comes_by_file_by_link_and_from_the_library(running: Running, browser: Browser) -> None:
    with Visit.begin(browser, running.url, expected="422", viewport=PHONE) as visit:
        page = visit.open(f"/draw?lora={weights(running, 'blob')}")
        expect(page.get_by_label("Scale of blob")).to_be_visible()
        page.get_by_label("By file …", exact=True).set_input_files(
            {"name": "mine.safetensors", "mimeType": "application/octet-stream", "buffer": LORA}
        )
        expect(page.get_by_label("Scale of mine.safetensors")).to_be_visible()
        expect(page.locator("#loras").get_by_text("zwx creature")).to_have_count(2)
        page.get_by_label("By link").fill("https://example.org/a/other.safetensors")
        page.get_by_label("By link").press("Enter")
        expect(page.get_by_label("Scale of other.safetensors")).to_be_visible()
        page.get_by_label("By file …", exact=True).set_input_files(
            {"name": "no.safetensors", "mimeType": "application/octet-stream", "buffer": b"no lora"}
        )
        expect(page.get_by_role("status").filter(has_text="no.safetensors")).to_be_visible()
        expect(page.get_by_role("group", name="Put into the prompt").get_by_role("button")).to_have_count(5)
        page.get_by_role("button", name="Remove other.safetensors").click()
        page.reload()
        expect(page.get_by_role("slider", name="Scale of")).to_have_count(2)
        links = page.evaluate("JSON.parse(sessionStorage.getItem('lora-service-draw')).loras.map((lora) => lora.link)")
        assert all("/v1/files/" in link for link in links), "links that end are no use in a tab that stays open"
        visit.check()


def test_what_is_wrong_is_told_at_its_field(running: Running, browser: Browser) -> None:
    with Visit.begin(browser, running.url, expected="422") as visit:
        page = visit.open("/draw")
        page.get_by_label("Num outputs").fill("1000")
        open_details(page, r"\d+ more inputs")
        page.get_by_label("guidance scale", exact=True).fill("-9")
        page.get_by_label("Find an input").fill("scheduler")
        expect(page.get_by_label("guidance scale", exact=True)).to_be_hidden()
        page.get_by_role("button", name="Draw", exact=True).click()
        expect(page.get_by_label("guidance scale", exact=True)).to_be_focused()
        page.get_by_label("guidance scale", exact=True).fill("")
        page.get_by_role("button", name="Draw", exact=True).click()
        expect(page.get_by_label("Num outputs")).to_have_attribute("aria-invalid", "true")
        expect(page.get_by_label("Num outputs")).to_be_focused()
        visit.check()
