"""Pictures of every state of the page: ``python -m tests.gateway.page.screenshots FOLDER [STEPS]``.

A subject is taught and drawn by the repository's own entries with the embedded base, in STEPS (150) steps of each
stage, or as the form has it where STEPS is 0. The seconds of a newcomer's path are told: from the gateway's start to
the first picture of the subject, without those that taking the pictures of the page costs.
"""

from __future__ import annotations

import sys
import tempfile
import time
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
        path = Stopwatch()
        with RunningGateway(Path(temporary) / "gateway", home=HOME) as gateway:
            path.tell("the gateway takes jobs")
            shoot_all(browser, gateway.url, pictures, folder, steps, path)


class Stopwatch:
    """Seconds since it was made, but for those in which it was stopped."""

    def __init__(self) -> None:
        self._begun = time.monotonic()

    def tell(self, what: str) -> None:
        """Print the seconds at which something has happened."""
        print(f"{time.monotonic() - self._begun:.1f} s: {what}", flush=True)

    def skip(self, since: float) -> None:
        """Leave out the time since ``since``."""
        self._begun += time.monotonic() - since


def shoot_all(browser: Browser, url: str, pictures: Path, folder: Path, steps: str, path: Stopwatch) -> None:
    """Go through the page as a newcomer does."""
    with Visit.begin(browser, url, expected="") as visit:

        def shoot(name: str, address: str = "", wait: Callable[[Page], object] = lambda page: None) -> None:
            begun = time.monotonic()
            for look, size, scheme in LOOKS:
                visit.page.set_viewport_size(size)  # type: ignore[arg-type]
                visit.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
                if address:
                    visit.open(address)
                wait(visit.page)
                visit.page.wait_for_timeout(300)
                if look == "phone":  # the whole page, as one window: what sticks to its edges would lie in the middle
                    height = visit.page.evaluate("document.documentElement.scrollHeight")
                    visit.page.set_viewport_size({"width": PHONE["width"], "height": height})
                visit.page.screenshot(path=folder / f"{name}-{look}.png")
                visit.check()
                print(f"{name}-{look}.png", flush=True)
            visit.page.set_viewport_size(DESKTOP)  # type: ignore[arg-type]
            path.skip(begun)

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
        for label in STEPS if steps != "0" else ():
            page.get_by_label(label, exact=True).fill(steps)
        page.get_by_role("button", name="Start teaching").click()
        page.wait_for_url("**/trainings/*")
        shoot("waiting")
        training = page.url.removeprefix(url)
        shoot("queue", "/queue", lambda page: page.locator(".jobs a").first.wait_for())
        visit.open(training)
        page.locator("#samples figure").first.wait_for(timeout=LONG)
        shoot("training", training, lambda page: page.locator(".chart").wait_for(timeout=LONG))
        page.get_by_role("heading", name="It is taught").wait_for(timeout=LONG)
        path.tell("it is taught")
        shoot("taught", training, lambda page: page.get_by_role("heading", name="It is taught").wait_for())
        page.get_by_role("link", name="Draw with it").click()
        page.get_by_role("button", name="Draw", exact=True).click()
        drawn = page.locator("#gallery img")
        drawn.first.wait_for(timeout=LONG)
        path.tell("it is drawn")
        page.get_by_text("Same seed, other scales", exact=True).click()
        page.get_by_role("button", name="Draw the strip").click()
        expect(drawn).to_have_count(4, timeout=LONG)
        shoot("draw", "/draw", lambda page: expect(drawn).to_have_count(4, timeout=LONG))
        shoot("library", "/library", lambda page: page.locator(".book").wait_for())
        page.get_by_role("button", name="Details of").click()
        shoot("details", wait=lambda page: page.get_by_role("dialog").locator(".chart").wait_for())


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
