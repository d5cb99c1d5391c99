"""The queue: its order, lost servers, times that are over, what clients see of errors and of numbers."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from lora_service.gateway.api.requests import cancel_seconds, wait_seconds
from tests.gateway.in_process import Running, run_gateway

ANN, BOB, ADMIN = ("anns" * 5, "bobs" * 5, "admn" * 5)
TOKENS = f"ann:run:{ANN},bob:run:{BOB},root:admin:{ADMIN}"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("gateway")
    with run_gateway(
        folder, require_tokens="yes", api_tokens=TOKENS, max_job_attempts=2, private=["127.0.0.1:*"]
    ) as running:
        yield running


def begun_order(running: Running, *jobs: tuple[str, dict[str, object]]) -> list[int]:
    """Queue jobs behind one that runs; returns their numbers in the order in which they were begun."""
    first = running.draw(ADMIN, input={"seconds": 60})
    while first["id"] not in running.engine.begun:
        time.sleep(0.02)
    made = [running.draw(token, **body) for token, body in jobs]
    running.call("POST", f"/v1/predictions/{first['id']}/cancel", ADMIN)
    for job, (token, _) in zip(made, jobs, strict=True):
        running.finished(job, token)
    ids = [job["id"] for job in made]
    return [ids.index(identifier) for identifier in running.engine.begun if identifier in ids]


def test_users_take_turns_and_each_ones_jobs_keep_their_order(running: Running) -> None:
    running.draw(ANN, wait=20)  # bob was served longer ago
    order = begun_order(running, (ANN, {}), (ANN, {}), (ANN, {}), (BOB, {}), (BOB, {}))
    assert order == [3, 0, 4, 1, 2]


def test_a_higher_priority_comes_first_and_a_lower_one_last(running: Running) -> None:
    order = begun_order(running, (ADMIN, {"priority": -5}), (ADMIN, {}), (ADMIN, {"priority": 5}))
    assert order == [2, 1, 0]


def test_a_job_whose_server_was_lost_is_begun_again(running: Running) -> None:
    job = running.finished(running.draw(ANN, input={"behaviour": "crash once"}), ANN)
    assert job["status"] == "succeeded"
    assert running.engine.begun.count(job["id"]) == 2


def test_a_job_that_loses_its_server_each_time_fails_and_the_next_is_run(running: Running) -> None:
    job = running.finished(running.draw(ANN, input={"behaviour": "crash"}), ANN)
    assert job["status"] == "failed"
    assert "lost under this job 2 times" in job["error"]
    assert running.draw(ANN, wait=20)["status"] == "succeeded"


def test_a_cancelled_job_that_waits_for_a_download_does_not_hold_up_the_next(running: Running) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        job = running.draw(ANN, input={"image": f"http://127.0.0.1:{silent.getsockname()[1]}/a.png"})
        silent.accept()
        running.call("POST", f"/v1/predictions/{job['id']}/cancel", ANN)
        assert running.draw(ANN, wait=20)["status"] == "succeeded"
        assert job["id"] not in running.engine.begun


def test_a_job_ends_when_its_time_is_over(running: Running) -> None:
    answer = running.call(
        "POST",
        "/v1/models/local/lora/predictions",
        ANN,
        json={"input": {"seconds": 60}},
        headers={"Cancel-After": "5s"},
    )
    job = running.finished(answer.json(), ANN)
    assert job["status"] == "canceled"
    assert 4 < job["metrics"]["total_time"] < 30
    wrong = running.call(
        "POST", "/v1/models/local/lora/predictions", ANN, json={"input": {}}, headers={"Cancel-After": "soon"}
    )
    assert wrong.status_code == 422


def test_an_error_is_the_servers_own_sentence_with_the_log(running: Running) -> None:
    job = running.finished(running.draw(ANN, input={"behaviour": "fail"}), ANN)
    assert job["error"] == "It was asked to fail."
    assert job["logs"] == "begun with \n"
    assert job["metrics"]["error_code"] == "asked"


def test_the_numbers_tell_states_waits_runs_and_where_loras_were_found(running: Running) -> None:
    running.draw(ANN, wait=20)
    text = running.call("GET", "/metrics", ADMIN).text
    assert 'lora_gateway_jobs{engine="predict",status="succeeded"}' in text
    assert 'lora_gateway_run_seconds_count{engine="predict",status="failed"}' in text
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    counts = {name: float(count) for name, count in lines}
    memory, read = (counts[f'lora_gateway_loras_total{{place="{place}"}}'] for place in ("memory", "read"))
    assert (memory, read) == (2 * read, read)
    assert counts["lora_gateway_webhooks_waiting"] == 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("", 0), ("respond-async", 0), ("wait", 60), ("wait=5", 5), ("wait=900", 60), ("a, wait=0", 1)],
)
def test_wait_is_read(text: str, seconds: float) -> None:
    assert wait_seconds(text) == seconds


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("5m", 300), ("1h30m", 5400), ("1h30m5s", 5405)]
)
def test_cancel_after_is_read(text: str, seconds: float) -> None:
    assert cancel_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "4s", "8d", "1.5h", "-5s", "999h"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"time like|between"):
        cancel_seconds(text)
