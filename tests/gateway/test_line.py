"""The queue as users see it, and its order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.in_process import Running
from tests.gateway.scripted_training import ANN, EVE, ROOT, TrainingEngine, begin, run_trainings, wait_for


@pytest.fixture
def trainings(tmp_path: Path) -> Iterator[tuple[Running, TrainingEngine]]:
    with run_trainings(tmp_path) as running:
        yield running


def queue(running: Running, token: str = ANN) -> dict[str, Any]:
    return dict(running.call("GET", "/v1/queue", token).json())


def order(running: Running, jobs: list[str], token: str = ANN) -> int:
    return running.call("POST", "/v1/queue/order", token, json={"jobs": jobs}).status_code


def waiting(running: Running) -> list[str]:
    return [entry["id"] for entry in queue(running, ROOT)["waiting"]]


def test_users_take_turns_and_see_of_others_that_they_wait(trainings: tuple[Running, TrainingEngine]) -> None:
    running, engine = trainings
    first = begin(running)
    wait_for(running, first)
    anns = [begin(running) for _ in range(2)]
    eves = [begin(running, EVE) for _ in range(2)]
    shown = queue(running)
    (runs,) = shown["running"]
    assert (runs["id"], runs["user"], runs["mine"], runs["position"]) == (first["id"], "ann", True, None)
    assert runs["metrics"]["stage"] == "stage 2 (LoRA)"
    assert [entry["mine"] for entry in shown["waiting"]] == [False, True, False, True]
    assert [entry["position"] for entry in shown["waiting"]] == [1, 2, 3, 4]
    assert shown["waiting"][1]["destination"] == "ann/dog"
    assert set(shown["waiting"][0]) == {
        "id", "kind", "status", "user", "mine", "position", "created_at", "started_at",
    }  # fmt: skip
    assert shown["waiting"][0]["id"] is shown["waiting"][0]["user"] is None
    expected = [eves[0]["id"], anns[0]["id"], eves[1]["id"], anns[1]["id"]]
    assert waiting(running) == expected
    engine.may_end = True
    for job in (*anns, *eves):
        running.finished(job, ROOT)
    assert engine.begun == [first["id"], *expected]
    assert queue(running) == {"running": [], "waiting": []}


def test_ones_own_jobs_take_each_others_places(trainings: tuple[Running, TrainingEngine]) -> None:
    running, engine = trainings
    wait_for(running, begin(running))
    a, b, c = (begin(running)["id"] for _ in range(3))
    assert order(running, [c, a]) == 200
    assert waiting(running) == [c, b, a]
    assert order(running, [a, b, c]) == 200
    assert waiting(running) == [a, b, c]
    assert order(running, [b, c, a]) == 200
    engine.may_end = True
    for job in (a, b, c):
        running.finished(running.call("GET", f"/v1/trainings/{job}", ANN).json(), ANN)
    assert engine.begun[1:] == [b, c, a]


def test_jobs_that_cannot_change_places_are_named(trainings: tuple[Running, TrainingEngine]) -> None:
    running, _ = trainings
    runs = begin(running)
    wait_for(running, runs)
    a, b = (begin(running)["id"] for _ in range(2))
    assert order(running, [a, runs["id"]]) == 409
    assert order(running, [a, a]) == 422
    assert order(running, []) == 422
    busy = running.draw(ANN, input={"seconds": 30})
    drawing = running.draw(ANN)
    assert order(running, [a, drawing["id"]]) == 409
    low = running.draw(ANN, priority=-1)
    assert order(running, [drawing["id"], low["id"]]) == 409
    running.call("POST", f"/v1/trainings/{b}/cancel", ANN)
    assert order(running, [a, b]) == 409
    running.call("POST", f"/v1/predictions/{busy['id']}/cancel", ANN)
    assert waiting(running)[0] == a


@pytest.mark.attack("users")
def test_nobody_moves_others_jobs(trainings: tuple[Running, TrainingEngine]) -> None:
    running, _ = trainings
    wait_for(running, begin(running))
    a, b = (begin(running)["id"] for _ in range(2))
    own = begin(running, EVE)["id"]
    before = waiting(running)
    assert order(running, [b, a], EVE) == 404
    assert order(running, [own, a], EVE) == 404
    assert order(running, ["a" * 26], EVE) == 404
    assert order(running, [b, a], "read" * 5) == 403
    assert waiting(running) == before
    assert not any(each in running.call("GET", "/v1/queue", EVE).text for each in (a, b, "ann"))
