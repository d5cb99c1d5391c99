"""A real Chromium for the tests of the page, and what they look for in every page."""

from __future__ import annotations

import re
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect, sync_playwright

from lora_service.demo.show import SUBJECT
from tests.gateway.running import ROOT

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
AXE = ROOT / "tests/gateway/javascript/node_modules/axe-core/axe.min.js"
MISSING = "there is no chromium: scripts/setup --dev installs it as root on Debian"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
SECONDS = 180
"""For whatever a page is waited for: machines that test are slow and busy."""
_QUIET = ("--no-sandbox", "--disable-background-networking", "--disable-component-update", "--no-first-run")


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser that asks nobody but the pages' own server."""
    expect.set_options(timeout=1000 * SECONDS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_QUIET))
        yield browser
        browser.close()


@dataclass
class Visit:
    """A tab, with what its console complained of.

    Args:
        expected: what a complaint may have in it.
    """

    page: Page
    url: str
    expected: str = ""
    complaints: list[str] = field(default_factory=list)

    @staticmethod
    @contextmanager
    def begin(browser: Browser, url: str, *, expected: str = "", **options: Any) -> Iterator[Visit]:
        """Open a tab of somebody new; the console must stay empty until the end."""
        context = browser.new_context(**{"viewport": DESKTOP, **options})
        context.set_default_timeout(1000 * SECONDS)
        visit = Visit(context.new_page(), url, expected)
        visit.page.on("console", lambda message: visit._note(message.type, f"{message.text} ({message.location})"))
        visit.page.on("pageerror", lambda error: visit._note("error", str(error)))
        try:
            yield visit
        finally:
            context.close()
        assert visit.complaints == [], visit.complaints

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and not (self.expected and re.search(self.expected, text)):
            self.complaints.append(text)

    def open(self, path: str) -> Page:
        """Go to a path of the gateway and wait until the page can be used."""
        self.page.goto(f"{self.url}{path}")
        self.page.locator("#main:not([inert]), #login[open]").first.wait_for()
        return self.page

    def check(self) -> None:
        """Look for what keeps people from using the page, and for what is wider than it."""
        wide = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"{self.page.url} is {wide} pixels wider than its window"
        if AXE.exists():
            self.page.evaluate(AXE.read_text())
            found = self.page.evaluate("axe.run().then(({violations}) => violations)")
            serious = [
                (each["id"], each["help"], [node["html"][:200] for node in each["nodes"]])
                for each in found
                if each["impact"] in ("serious", "critical")
            ]
            assert serious == [], f"{self.page.url}: {serious}"


def sign_in(visit: Visit, token: str, *, keep: bool = False) -> None:
    """Give the page a token."""
    visit.page.get_by_label("Token").fill(token)
    visit.page.get_by_label("Keep it in this browser").set_checked(keep)
    visit.page.get_by_role("button", name="Sign in").click()


def drawn_zip(path: Path, pictures: int = 8) -> Path:
    """Write a zip of a drawn subject with its captions and masks, and a file that is no picture."""
    with zipfile.ZipFile(SUBJECT) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            if int(name[:2]) <= pictures:
                target.writestr(name, source.read(name))
        target.writestr("notes.doc", b"no picture")
    return path
