"""Server-sent events: what is sent, and going on after a lost connection."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from lora_service.gateway.api.streams import EventText
from tests.gateway.in_process import Running, run_gateway


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with run_gateway(tmp_path_factory.mktemp("gateway")) as running:
        yield running


def parse(text: str) -> list[tuple[str, str, str]]:
    """Event, identifier and data of each event."""
    events = []
    for block in text.split("\n\n"):
        lines = [line.partition(": ") for line in block.splitlines() if not line.startswith(":")]
        values = {name: value for name, _, value in lines if name != "data"}
        if values:
            events.append(
                (values["event"], values["id"], "\n".join(value for name, _, value in lines if name == "data"))
            )
    return events


def stream(running: Running, job: dict[str, Any], **options: Any) -> list[tuple[str, str, str]]:
    answer = running.call("GET", job["urls"]["stream"].removeprefix(running.url) + options.pop("more", ""), **options)
    assert answer.headers["content-type"].startswith("text/event-stream")
    return parse(answer.text)


def test_a_running_job_is_followed_to_its_end(running: Running) -> None:
    events = stream(running, running.draw(input={"prompt": "a\nb", "seconds": 0.5}))
    assert "".join(data for name, _, data in events if name == "logs") == "begun with a\nb\ndrawn\n"
    assert [name for name, _, _ in events][-2:] == ["output", "done"]


def test_a_lost_connection_goes_on_after_the_last_event(running: Running) -> None:
    job = running.draw(input={"seconds": 0.3})
    events = stream(running, job)
    for number, (_, identifier, _) in enumerate(events[:-1]):
        rest = stream(running, job, headers={"Last-Event-ID": identifier})
        assert [(name, data) for name, _, data in rest if name == "logs"] == [
            (name, data) for name, _, data in events[number + 1 :] if name == "logs"
        ]
        assert len([name for name, _, _ in rest if name == "output"]) == (
            len([name for name, _, _ in events[number + 1 :] if name == "output"])
        )
        assert rest[-1][0] == "done"
    assert len(stream(running, job, headers={"Last-Event-ID": "nonsense"})) >= 3


def test_progress_and_errors_are_sent_too(running: Running) -> None:
    job = running.draw(input={"behaviour": "fail", "seconds": 0.3})
    events = stream(running, job, more="&progress=1")
    progress = [json.loads(data) for name, _, data in events if name == "progress"]
    assert progress[-1]["metrics"]["error_code"] == "asked"
    assert [(name, data) for name, _, data in events][-2:] == [
        ("error", "It was asked to fail."),
        ("done", '{"reason": "error"}'),
    ]


@pytest.mark.attack("link")
def test_a_stream_needs_its_own_link(running: Running) -> None:
    job, other = running.draw(wait=10), running.draw(wait=10)
    link = job["urls"]["stream"].removeprefix(running.url)
    assert running.call("GET", link.replace(job["id"], other["id"])).status_code == 403
    assert running.call("GET", link.partition("?")[0]).status_code == 403


def test_a_job_that_is_begun_anew_shows_its_new_log_from_the_start() -> None:
    text = EventText()
    shown = {"logs": "one two", "metrics": {}, "output": None, "status": "processing", "error": None}
    text.events(shown)
    again = text.events({**shown, "logs": "one"})
    assert parse(again) == [("logs", "3:0", "one")]
