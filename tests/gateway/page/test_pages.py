"""The pages as they are sent, without a browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_service.gateway.page import pages
from tests.gateway.in_process import Running, run_gateway

FOLDER = Path(pages.__file__).parent
HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
PATHS = ("/", "/trainings/abc", "/draw", "/library", "/queue")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with run_gateway(tmp_path_factory.mktemp("gateway")) as running:
        yield running


@pytest.mark.parametrize("path", PATHS)
def test_browsers_get_a_page_and_programs_what_they_got_before(running: Running, path: str) -> None:
    page = running.call("GET", path, headers=HTML)
    assert page.headers["content-type"].startswith("text/html")
    assert re.search(r'src="/static/\w+\.js"', page.text)
    answer = running.call("GET", path)
    assert (answer.status_code, answer.json()["title"]) == (404, "Not found")


@pytest.mark.attack("page")
@pytest.mark.parametrize("path", ["/", "/static/teach.js", "/static/page.css"])
def test_nothing_but_the_pages_own_files_may_run(running: Running, path: str) -> None:
    headers = running.call("GET", path, headers=HTML).headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["trusted-types"] == "'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.attack("page")
@pytest.mark.parametrize("path", ["/static/../pages.py", "/static/%2e%2e/pages.py", "/static//etc/passwd", "/static/"])
def test_no_other_files_are_sent(running: Running, path: str) -> None:
    assert running.call("GET", path).status_code == 404


def test_files_are_asked_for_again_and_sent_once(running: Running) -> None:
    first = running.call("GET", "/static/page.css")
    assert first.headers["cache-control"] == "no-cache"
    again = running.call("GET", "/static/page.css", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_pages_need_no_token_and_hold_nothing_of_anybody(tmp_path: Path) -> None:
    with run_gateway(tmp_path, require_tokens="yes", api_tokens=f"anna:run:{'a' * 16}") as running:
        page = running.call("GET", "/queue", headers=HTML)
        assert page.status_code == 200
        assert "anna" not in page.text


@pytest.mark.attack("page")
def test_another_host_gets_no_page_where_no_tokens_are_needed(running: Running) -> None:
    assert running.call("GET", "/", headers={**HTML, "Host": "evil.example"}).status_code == 403


def test_no_text_is_parsed_as_markup_and_no_script_or_style_is_inline() -> None:
    for script in (FOLDER / "static").glob("*.js"):
        found = re.findall(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", script.read_text()
        )
        assert found == [], script.name
    for template in (FOLDER / "templates").glob("*.html"):
        found = re.findall(r"<script(?![^>]*src=)|\son\w+=|\sstyle=|\|\s*safe", template.read_text())
        assert found == [], template.name


def test_every_script_that_is_named_is_there() -> None:
    scripts = {path.name for path in (FOLDER / "static").glob("*.js")}
    for script in (FOLDER / "static").glob("*.js"):
        assert set(re.findall(r'from "\./([\w.]+)"', script.read_text())) <= scripts
    assert {f"{path.stem}.js" for path in (FOLDER / "templates").glob("*.html")} - {"frame.js"} <= scripts
