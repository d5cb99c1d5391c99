"""A training on the page: a scripted server's states, and a newcomer's whole path on the real one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from lora_service.serving.entries import HOME
from tests.gateway.in_process import Running
from tests.gateway.page.browser import Visit, drawn_zip, sign_in
from tests.gateway.running import RunningGateway
from tests.gateway.scripted_training import (
    ANN,
    EVE,
    PICTURES,
    TrainingEngine,
    begin,
    lora_file,
    run_trainings,
    wait_for,
)
from tests.gateway.scripted_training import ROOT as ADMIN

Scripted = tuple[Running, TrainingEngine]


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[Scripted]:
    with run_trainings(tmp_path, lora_file(ss_output_name="dog")) as running:
        yield running


def test_a_training_is_watched_saved_and_stopped(scripted: Scripted, browser: Browser) -> None:
    running, _ = scripted
    job = begin(running, task="object", class_word="dog")
    wait_for(running, job)
    with Visit.begin(browser, running.url, expected="401") as visit:
        page = visit.open(f"/trainings/{job['id']}")
        sign_in(visit, ANN)
        expect(page.locator("#stage")).to_contain_text("stage 2 (LoRA), step 2 of 3, about 1 s left")
        assert "held-out loss from" in str(page.locator(".chart").get_attribute("aria-label"))
        assert page.locator("polyline.loss").count() == 2
        expect(page.locator("#samples img").first).to_be_visible()
        page.get_by_role("button", name="Save now").click()
        expect(page.locator("#saved li")).to_have_count(1)
        visit.check()
        page.reload()
        expect(page.locator("#saved li")).to_have_count(1)
        page.get_by_role("button", name="Stop and keep").click()
        page.get_by_role("dialog").get_by_role("button", name="Stop and keep").click()
        expect(page.get_by_role("heading", name="It is taught")).to_be_visible()
        expect(page.get_by_role("link", name="Draw with it")).to_have_attribute(
            "href", "/draw?lora=" + lora_of(running)
        )
        assert "taught" in page.title()
        visit.check()
        page.evaluate("sessionStorage.clear()")
        page.reload()
        sign_in(visit, ADMIN)  # has another library
        expect(page.locator("#result a")).to_have_attribute("download", "lora.bin")


def lora_of(running: Running) -> str:
    return str(running.call("GET", "/v1/loras", ANN).json()["results"][0]["id"])


def test_a_failure_is_readable_and_can_be_tried_again(scripted: Scripted, browser: Browser) -> None:
    running, _ = scripted
    job = begin(running, task="style", class_word="dog", instance_data="https://127.0.0.1/private.zip%",
                class_data=PICTURES, preservation="prior")  # fmt: skip
    with Visit.begin(browser, running.url, expected="401|422") as visit:
        page = visit.open(f"/trainings/{job['id']}")
        sign_in(visit, ANN)
        expect(page.get_by_role("heading", name="It failed")).to_be_visible()
        expect(page.locator("#result .problem")).to_contain_text("127.0.0.1")
        visit.check()
        page.get_by_role("button", name="Try again").click()
        expect(page.get_by_role("radio", name="style")).to_be_checked()
        expect(page.get_by_label("Class word")).to_have_value("dog")
        expect(page.locator("#pictures-problem")).not_to_be_empty()
        page.get_by_text("more inputs").click()
        expect(page.locator(".kept:visible")).to_have_count(1)
        assert "/v1/files/" in str(page.locator("[name=class_data]").get_attribute("data-link"))
        page.get_by_role("button", name="Leave it out").click()
        expect(page.locator(".kept:visible")).to_have_count(0)


def names(page: Page) -> list[str]:
    return page.locator("#waiting li p:first-child").all_inner_texts()


def test_two_people_share_a_queue(scripted: Scripted, browser: Browser) -> None:
    running, engine = scripted
    job = begin(running)
    wait_for(running, job)
    for word in ("first", "second"):
        running.call("POST", trainings(running), ANN, json={"destination": f"ann/{word}", "input": job["input"]})
    begin(running, EVE)
    with Visit.begin(browser, running.url, expected="401") as visit:
        page = visit.open("/queue")
        sign_in(visit, ANN)
        expect(page.locator("#waiting li")).to_have_count(3)
        assert "A training" in names(page)[0], "eve's turn comes before ann's others"
        assert "eve" not in page.locator("main").inner_text()
        page.get_by_role("button", name="Move second earlier").click()
        expect(page.locator("#waiting li").nth(1)).to_contain_text("second")
        expect(page.locator("#running li")).to_contain_text("yours")
        visit.check()
        page.get_by_role("button", name="Cancel").last.click()
        expect(page.locator("#waiting li")).to_have_count(2)
        expect(page.locator("#ended li")).to_contain_text("cancelled")
        engine.may_end = True


def trainings(running: Running) -> str:
    version = running.call("GET", "/v1/models/local/lora-training", ANN).json()["latest_version"]["id"]
    return f"/v1/models/local/lora-training/versions/{version}/trainings"


def choose(page: Page, pictures: Path) -> None:
    page.get_by_role("radio", name="object").check()
    page.locator("#files").set_input_files(pictures)
    expect(page.locator(".tile")).to_have_count(9)


@pytest.mark.slow
def test_a_newcomer_teaches_a_subject_and_teaches_it_further(browser: Browser, tmp_path: Path) -> None:
    pictures = drawn_zip(tmp_path / "creature.zip", 9)
    with (
        RunningGateway(tmp_path / "gateway", home=HOME) as gateway,
        Visit.begin(browser, gateway.url, expected="net::|does not answer") as visit,
    ):
        page = visit.open("/")
        choose(page, pictures)
        page.get_by_text("1 file left out").click()
        expect(page.get_by_text("notes.doc")).to_be_visible()
        edit_captions(page)
        page.get_by_label("Class word").fill("creature")
        set_steps(page, "2000", "700")
        page.get_by_role("button", name="Start teaching").click()
        page.wait_for_url("**/trainings/*")
        expect(page.locator("#stage")).to_contain_text("stage 1")
        page.reload()
        expect(page.locator("#stage")).to_contain_text("step")
        stop(page)
        expect(page.locator("#given-list")).to_contain_text("blue garden")
        page.get_by_role("link", name="Teach further").click()
        choose(page, pictures)
        set_steps(page, "0", "2000")
        page.get_by_role("button", name="Start teaching").click()
        expect(page.locator("#stage")).to_contain_text("stage 2")
        gateway.kill()
        expect(page.get_by_text("Trying again")).to_be_visible()
        gateway.start()
        expect(page.get_by_text("The gateway answers again.")).to_be_visible()
        expect(page.locator("#stage")).to_contain_text("stage 2")
        stop(page)
        visit.open("/queue")
        expect(page.locator("#ended li")).to_have_count(2)


def set_steps(page: Page, first: str, second: str) -> None:
    page.get_by_label("max train steps ti", exact=True).fill(first)
    page.get_by_label("max train steps tuning", exact=True).fill(second)
    page.get_by_text("more inputs").click()
    page.get_by_label("Find an input").fill("how often samples")
    page.get_by_label("samples", exact=True).fill("0")


def edit_captions(page: Page) -> None:
    first = page.locator(".tile textarea").first
    before = first.input_value()
    first.fill("a photo of {} in the red garden")
    first.blur()
    page.get_by_text("Captions", exact=True).click()
    page.get_by_label("Find", exact=True).fill("red")
    page.get_by_label("Replace with").fill("blue")
    page.get_by_role("button", name="Replace in all").click()
    expect(first).to_have_value("a photo of {} in the blue garden")
    for text in ("a photo of {} in the red garden", before):
        page.get_by_role("button", name="Undo").click()
        expect(first).to_have_value(text)
    first.fill("a photo of {} in the blue garden")
    first.blur()
    expect(page.locator("#sheet")).to_have_attribute("aria-busy", "true")
    expect(page.locator("#sheet")).to_have_attribute("aria-busy", "false")
    expect(first).to_have_value("a photo of {} in the blue garden")


def stop(page: Page) -> None:
    page.get_by_role("button", name="Stop and keep").click()
    page.get_by_role("dialog").get_by_role("button", name="Stop and keep").click()
    expect(page.get_by_role("heading", name="It is taught")).to_be_visible()
