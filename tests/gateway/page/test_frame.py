"""What all pages have in common, in a real browser: signing in, no markup from strangers, keyboard, colours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Error, Route, expect

from lora_service.serving.entries import HOME
from tests.gateway.in_process import Running, ScriptedEngine, document, run_gateway
from tests.gateway.page.browser import DESKTOP, PHONE, Visit, sign_in
from tests.gateway.scripted_training import TrainingEngine

HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
TOKENS = {"anna": "a" * 20, "ben": "b" * 20}
PAGES = ("/", "/draw", "/library", "/queue", "/trainings/unknown")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    tokens = ",".join(f"{user}:run:{token}" for user, token in TOKENS.items())
    with run_gateway(tmp_path_factory.mktemp("gateway"), require_tokens="yes", api_tokens=tokens) as running:
        yield running


def test_a_token_is_asked_for_kept_and_forgotten(running: Running, browser: Browser) -> None:
    running.draw(TOKENS["anna"], input={"prompt": "a red star"})
    with Visit.begin(browser, running.url, expected="401") as visit:
        page = visit.open("/queue")
        visit.check()
        sign_in(visit, "a token that nobody has")
        expect(page.get_by_role("alert").filter(has_text="not known")).to_be_visible()
        sign_in(visit, TOKENS["anna"])
        expect(page.get_by_text("a red star")).to_be_visible()
        expect(page.locator("#user")).to_have_text("anna")
        page.reload()
        expect(page.get_by_text("a red star")).to_be_visible()
        assert page.context.cookies() == []
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("dialog")).to_be_visible()
        sign_in(visit, TOKENS["ben"], keep=True)
        expect(page.get_by_text("Nothing has ended yet.")).to_be_visible()
        other = page.context.new_page()
        other.goto(f"{running.url}/queue")
        expect(other.locator("#user")).to_have_text("ben")


@pytest.mark.attack("page")
def test_what_strangers_write_never_becomes_markup(running: Running, browser: Browser) -> None:
    running.finished(running.draw(TOKENS["anna"], input={"prompt": HOSTILE, "behaviour": "fail"}), TOKENS["anna"])
    with Visit.begin(browser, running.url, expected="401|TrustedHTML") as visit:
        page = visit.open("/queue")
        sign_in(visit, TOKENS["anna"])
        expect(page.get_by_text(HOSTILE[:60]).first).to_be_visible()
        page.get_by_text("Log", exact=True).first.click()
        assert page.locator("main img[src=x], main script").count() == 0
        with pytest.raises(Error, match="TrustedHTML"):
            page.evaluate("document.body.insertAdjacentHTML('beforeend', '<p>')")
        assert page.title() != "taken"


@pytest.mark.attack("page")
def test_hostile_answers_are_shown_as_text(browser: Browser, tmp_path: Path) -> None:
    icon = "/static/icon.svg"
    picture = {"name": HOSTILE, "image": icon, "mask": icon, "size": [8, 8], "caption": HOSTILE,
               "captions": [HOSTILE], "caption_source": "file", "repeats": 1, "warnings": [HOSTILE]}  # fmt: skip
    report = {"pictures": [picture], "left_out": [{"name": HOSTILE, "reason": HOSTILE}], "duplicates": [],
              "warnings": [HOSTILE], "lines": []}  # fmt: skip
    job = {"id": "x", "destination": f"anna/{HOSTILE}", "status": "processing", "input": {"x": HOSTILE},
           "logs": HOSTILE, "error": None, "created_at": "2026-01-01T00:00:00Z", "started_at": "2026-01-01T00:00:00Z",
           "completed_at": None}  # fmt: skip
    progress = {"stage": HOSTILE, "step": 1, "of": 2, "seconds_left": 1, "samples": [], "is_stopping": False,
                "points": [{"stage": HOSTILE, "step": 1, "of": 2, "loss": 0.5}], "can_save": True, "can_stop": True,
                "saved": [{"stage": HOSTILE, "step": 1, "url": "javascript:alert(1)", "name": HOSTILE, "size": 1,
                           "created_at": "2026-01-01T00:00:00Z"}]}  # fmt: skip
    (tmp_path / "a.png").write_bytes(b"not looked at")
    with (
        run_gateway(tmp_path, engines=[TrainingEngine("train")]) as running,
        Visit.begin(browser, running.url) as visit,
    ):
        answer(visit, "previews", report)
        answer(visit, "queue", {"running": [], "waiting": []})
        answer(visit, "trainings/x", job)
        answer(visit, "trainings/x/progress", progress)
        page = visit.open("/")
        page.locator("#files").set_input_files(tmp_path / "a.png")
        expect(page.locator(".tile textarea")).to_have_value(HOSTILE)
        expect(page.locator(".warned")).to_have_text(HOSTILE)
        visit.check()
        visit.open("/trainings/x")
        expect(page.get_by_role("heading", level=1)).to_contain_text("script>")
        expect(page.locator("#log-text")).to_have_text(HOSTILE)
        assert page.title().startswith("50 %"), "a stage 2 without a stage 1 is the whole"
        assert "javascript:" not in str(page.locator("#saved a").get_attribute("href"))
        assert page.locator("main script, main [onerror]").count() == 0
        visit.check()
        assert page.title() != "taken"


def test_files_are_uploaded_once_and_left_out_by_the_name_that_they_are_kept_under(
    browser: Browser, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    for path in (tmp_path / "Müller's.jpg", tmp_path / "a" / "Müller's.jpg", tmp_path / "class.zip"):
        path.write_bytes(b"not looked at")
    picture = {"name": "Müller_s.jpg", "image": "/static/icon.svg", "mask": None, "size": [8, 8], "caption": "a",
               "captions": ["a"], "caption_source": "file", "repeats": 1, "warnings": []}  # fmt: skip
    report = {"pictures": [picture], "left_out": [], "duplicates": [], "warnings": []}
    with (
        run_gateway(tmp_path / "gateway", engines=[TrainingEngine("train")]) as running,
        Visit.begin(browser, running.url) as visit,
    ):
        answer(visit, "previews", report)
        page = visit.open("/")
        for path in (tmp_path / "Müller's.jpg", tmp_path / "a" / "Müller's.jpg"):
            page.locator("#files").set_input_files(path)
            expect(page.locator(".tile")).to_have_count(1)
        expect(page.locator("#uploads")).to_contain_text("2 files")
        page.get_by_text("more inputs").click()
        page.locator("[name=class_data]").set_input_files(tmp_path / "class.zip")
        page.get_by_label("Class word").press_sequentially("dog")
        with page.expect_response("**/v1/previews"):
            page.get_by_label("Class word").press_sequentially("gy")
        with page.expect_response("**/v1/previews") as last:
            page.get_by_role("button", name="Leave out Müller_s.jpg").click()
        files = {each["name"]: each["id"] for each in running.call("GET", "/v1/files").json()["results"]}
        assert sorted(files) == ["2-Müller_s.jpg", "Müller_s.jpg", "class.zip"]
        assert last.value.request.post_data_json["input"]["instance_data_urls"].endswith(files["2-Müller_s.jpg"])


def answer(visit: Visit, path: str, body: dict[str, Any]) -> None:
    def fulfil(route: Route) -> None:
        route.fulfill(content_type="application/json", body=json.dumps(body))

    visit.page.route(f"**/v1/{path}", fulfil)


@dataclass
class DrawingEngine(ScriptedEngine):
    """Has the real form."""

    async def document(self) -> dict[str, Any]:
        return document(self.kind, HOME)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_pages_can_be_used_by_everybody(tmp_path: Path, browser: Browser, scheme: str) -> None:
    with (
        run_gateway(tmp_path, engines=[DrawingEngine(), TrainingEngine("train")]) as running,
        Visit.begin(browser, running.url, expected="404", color_scheme=scheme) as visit,
    ):
        for path in PAGES:
            for size in (PHONE, DESKTOP):
                visit.page.set_viewport_size(size)  # type: ignore[arg-type]
                visit.open(path)
                visit.page.wait_for_load_state("networkidle")
                visit.check()


def test_the_keyboard_reaches_everything_of_the_frame(tmp_path: Path, browser: Browser) -> None:
    with run_gateway(tmp_path) as running, Visit.begin(browser, running.url) as visit:
        page = visit.open("/queue")
        expect(page.get_by_text("Nothing runs.")).to_be_visible()
        names = []
        for _ in range(6):
            page.keyboard.press("Tab")
            names.append(page.evaluate("document.activeElement.textContent.trim()"))
        assert names == ["Skip to content", "lora-service", "Teach", "Draw", "Library", "Queue"]
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Enter")
        expect(page).to_have_url(f"{running.url}/library")
