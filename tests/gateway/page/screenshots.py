"""Pictures of every state of the page: ``python -m tests.gateway.page.screenshots FOLDER [STEPS]``.

A subject is taught by the repository's own entries with the embedded base, in STEPS (150) steps of each stage: minutes.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Browser, Page, expect

from lora_service.serving.entries import HOME
from tests.gateway.page.browser import DESKTOP, PHONE, Visit, chromium, drawn_zip
from tests.gateway.running import RunningGateway

LOOKS = (("desktop", DESKTOP, "light"), ("phone", PHONE, "dark"))
LONG = 300_000
STEPS = ("max train steps ti", "max train steps tuning")


def main(folder: Path, steps: str = "150") -> None:
    """Write the pictures into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, chromium() as browser:
        pictures = drawn_zip(Path(temporary) / "creature.zip", 9)
        with RunningGateway(Path(temporary) / "gateway", home=HOME) as gateway:
            shoot_all(browser, gateway.url, pictures, folder, steps)


def shoot_all(browser: Browser, url: str, pictures: Path, folder: Path, steps: str) -> None:
    """Go through the page as a newcomer does."""
    with Visit.begin(browser, url, expected="") as visit:

        def shoot(name: str, path: str = "", wait: Callable[[Page], object] = lambda page: None) -> None:
            for look, size, scheme in LOOKS:
                visit.page.set_viewport_size(size)  # type: ignore[arg-type]
                visit.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
                if path:
                    visit.open(path)
                wait(visit.page)
                visit.page.wait_for_timeout(300)
                if look == "phone":  # the whole page, as one window: what sticks to its edges would lie in the middle
                    height = visit.page.evaluate("document.documentElement.scrollHeight")
                    visit.page.set_viewport_size({"width": PHONE["width"], "height": height})
                visit.page.screenshot(path=folder / f"{name}-{look}.png")
                visit.check()
                print(f"{name}-{look}.png", flush=True)

        page = visit.open("/")
        expect(page.get_by_label("Class word")).to_be_visible()
        shoot("teach")
        page.get_by_role("radio", name="object").check()
        page.locator("#files").set_input_files(pictures)
        expect(page.locator(".tile")).to_have_count(9, timeout=LONG)
        shoot(
            "sheet",
            wait=lambda page: page.locator(".tiles").evaluate(
                "tiles => scrollTo(0, tiles.getBoundingClientRect().top + scrollY - 340)"
            ),
        )
        page.get_by_label("class word", exact=True).fill("creature")
        for label in STEPS:
            page.get_by_label(label, exact=True).fill(steps)
        page.get_by_role("button", name="Start teaching").click()
        page.wait_for_url("**/trainings/*")
        shoot("waiting")
        training = page.url.removeprefix(url)
        shoot("queue", "/queue", lambda page: page.locator(".jobs a").first.wait_for())
        visit.open(training)
        page.locator("#samples figure").first.wait_for(timeout=LONG)
        shoot("training", training, lambda page: page.locator(".chart").wait_for(timeout=LONG))
        shoot("taught", training, lambda page: page.get_by_role("heading", name="It is taught").wait_for(timeout=LONG))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
