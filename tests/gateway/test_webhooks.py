"""Webhooks: who gets which, how they are signed, when they are sent again, and where they are not sent to."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from replicate.webhook import InvalidSignatureError, Webhooks
from sqlalchemy import func, select

from lora_service.gateway.database.tables import Delivery
from lora_service.gateway.webhooks import pause
from tests.gateway.in_process import Running, run_gateway
from tests.gateway.receiver import Receiver, receiving


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with run_gateway(tmp_path_factory.mktemp("gateway"), private=["127.0.0.1:*"]) as running:
        yield running


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def waiting(running: Running) -> int:
    with running.gateway.database.read() as session:
        return session.scalar(select(func.count()).select_from(Delivery)) or 0


def wait_until_none_waits(running: Running) -> None:
    end = time.monotonic() + 30
    while waiting(running):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_replicates_own_client_accepts_the_signature(running: Running, receiver: Receiver) -> None:
    running.draw(webhook=receiver.url, webhook_events_filter=["completed"])
    [told] = receiver.wait(1)
    secret = running.client().webhooks.default.secret()
    Webhooks.validate(headers=told.headers, body=told.body, secret=secret, tolerance=60)
    with pytest.raises(InvalidSignatureError):
        Webhooks.validate(headers=told.headers, body=told.body + " ", secret=secret)
    assert told.job["status"] == "succeeded"
    assert running.call("GET", told.job["output"][0].removeprefix(running.url)).status_code == 200


def test_all_events_come_in_their_order_without_a_filter(running: Running, receiver: Receiver) -> None:
    running.draw(webhook=receiver.url, input={"seconds": 0.3})
    told = receiver.wait(3)
    assert told[0].job["status"] == "processing"
    assert [each.job["status"] for each in told[1:]] == ["succeeded", "succeeded"]
    assert len({each.headers["webhook-id"] for each in told}) == 3


def test_a_filter_leaves_events_out(running: Running, receiver: Receiver) -> None:
    running.draw(webhook=receiver.url, webhook_events_filter=["start"], wait=10)
    running.draw(webhook_completed=receiver.url, wait=10)
    receiver.wait(2)
    wait_until_none_waits(running)
    assert sorted(each.job["status"] for each in receiver.came) == ["processing", "succeeded"]


def test_a_cancelled_job_tells_its_end(running: Running, receiver: Receiver) -> None:
    job = running.draw(webhook=receiver.url, webhook_events_filter=["completed"], input={"seconds": 60})
    running.call("POST", f"/v1/predictions/{job['id']}/cancel")
    [told] = receiver.wait(1)
    assert told.job["status"] == "canceled"


def test_one_that_is_not_taken_comes_again_under_its_id(running: Running) -> None:
    with receiving(refuse_first=2) as receiver:
        running.draw(webhook=receiver.url, webhook_events_filter=["completed"])
        told = receiver.wait(3)
        assert len({each.headers["webhook-id"] for each in told}) == 1
        assert len({each.body for each in told}) == 1
    wait_until_none_waits(running)


def test_one_that_nobody_took_is_sent_after_a_restart(tmp_path: Path, receiver: Receiver) -> None:
    with receiving(refuse_first=1000) as refusing, run_gateway(tmp_path, private=["127.0.0.1:*"]) as running:
        running.draw(webhook=refusing.url, webhook_events_filter=["completed"])
        refused = refusing.wait(1)[0]
        time.sleep(0.1)
    with run_gateway(tmp_path, private=["127.0.0.1:*"], port=running.gateway.port) as running:
        with running.gateway.database.write() as session:
            row = session.scalars(select(Delivery)).one()
            row.url = receiver.url
        assert receiver.wait(1)[0].headers["webhook-id"] == refused.headers["webhook-id"]


@pytest.mark.attack("webhook")
@pytest.mark.parametrize(
    "url",
    ["http://10.0.0.1/", "http://169.254.169.254/latest/meta-data", "http://127.0.0.1/", "http://[::1]/", "ftp://a.com/",
     "file:///etc/passwd", "http://example.com:22/", "nonsense"],
)  # fmt: skip
def test_an_address_that_must_not_be_told_is_refused_at_once(gateway_without_private: Running, url: str) -> None:
    answer = gateway_without_private.call(
        "POST", "/v1/models/local/lora/predictions", json={"input": {}, "webhook": url}
    )
    assert answer.status_code == 422
    assert answer.json()["invalid_fields"][0]["field"] == "webhook"


@pytest.fixture(scope="module")
def gateway_without_private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with run_gateway(tmp_path_factory.mktemp("guarded")) as running:
        yield running


@pytest.mark.attack("webhook")
def test_a_name_of_a_private_address_is_given_up_without_a_connection(gateway_without_private: Running) -> None:
    running = gateway_without_private
    job = running.draw(webhook="http://localhost/told", wait=10)
    assert job["status"] == "succeeded"
    wait_until_none_waits(running)


def test_pauses_grow_up_to_hours() -> None:
    pauses = [pause(attempts) for attempts in range(1, 15)]
    assert 0.9 <= pauses[0] <= 1.1
    assert sum(pauses[:3]) < 8
    assert all(each <= 4 * 3600 * 1.1 for each in pauses)
    assert sum(pauses) > 6 * 3600
