"""Who may do what: tokens, scopes, and what belongs to other users."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lora_service.cli.gateway import token_group
from lora_service.errors import InputError, SettingError
from lora_service.gateway.api.access import RateLimit, known_hosts
from lora_service.gateway.settings import GatewaySettings, needs_tokens
from tests.gateway.in_process import DRAW, Running, run_gateway

READ, RUN, OTHER, ADMIN = ("read" * 5, "runs" * 5, "othr" * 5, "admn" * 5)
TOKENS = f"ann:read:{READ},ann:run:{RUN},bob:run:{OTHER},root:admin:{ADMIN}"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("gateway")
    with run_gateway(folder, require_tokens="yes", api_tokens=TOKENS) as running:
        yield running


@pytest.mark.parametrize("token", ["", "wrong" * 8])
def test_without_a_known_token_nothing_is_answered(running: Running, token: str) -> None:
    for method, path in (("GET", "/v1/predictions"), ("POST", DRAW), ("GET", "/v1/files"), ("GET", "/v1/account")):
        answer = running.call(method, path, token)
        assert answer.status_code == 401
        assert answer.headers["content-type"] == "application/problem+json"
        assert set(answer.json()) == {"title", "detail", "status"}
    assert running.call("GET", "/healthz").status_code == 200


def test_a_token_to_read_does_not_run(running: Running) -> None:
    assert running.call("GET", "/v1/predictions", READ).status_code == 200
    assert running.call("POST", DRAW, READ, json={"input": {}}).status_code == 403
    assert running.call("POST", "/v1/files", READ, files={"content": io.BytesIO(b"x")}).status_code == 403
    job = running.draw(RUN)
    assert running.call("POST", f"/v1/predictions/{job['id']}/cancel", READ).status_code == 403
    assert running.call("GET", f"/v1/predictions/{job['id']}", READ).json()["id"] == job["id"]


def test_priorities_and_metrics_are_for_admins(running: Running) -> None:
    body = {"input": {}, "priority": 1}
    assert running.call("POST", DRAW, RUN, json=body).status_code == 403
    assert running.call("POST", DRAW, ADMIN, json=body).status_code == 201
    assert running.call("GET", "/metrics", RUN).status_code == 403
    assert "lora_gateway_queue_length" in running.call("GET", "/metrics", ADMIN).text


@pytest.mark.attack("token")
def test_what_is_another_users_is_as_if_it_were_not_there(running: Running) -> None:
    job = running.draw(RUN)
    file = running.call("POST", "/v1/files", RUN, files={"content": ("a.png", b"abc")}).json()
    running.call("POST", "/v1/models", RUN, json={"owner": "ann", "name": "secret"})
    paths = [("GET", f"/v1/predictions/{job['id']}"), ("POST", f"/v1/predictions/{job['id']}/cancel"),
             ("GET", f"/v1/trainings/{job['id']}"), ("GET", f"/v1/files/{file['id']}"),
             ("DELETE", f"/v1/files/{file['id']}"), ("GET", "/v1/models/ann/secret"),
             ("DELETE", "/v1/models/ann/secret"), ("GET", "/v1/models/ann/secret/versions")]  # fmt: skip
    assert [running.call(method, path, OTHER).status_code for method, path in paths] == [404] * len(paths)
    assert running.call("GET", "/v1/predictions", OTHER).json()["results"] == []
    assert running.call("GET", "/v1/files", OTHER).json()["results"] == []
    stolen = {"input": {"image": file["urls"]["get"]}}
    assert running.call("POST", DRAW, OTHER, json=stolen).status_code == 422
    marked = {"input": {"prompt": f"gateway-file:{file['id']}"}}
    assert running.call("POST", DRAW, OTHER, json=marked).status_code == 422
    training = {"input": {"instance_data": "data:,x"}, "destination": "ann/dog"}
    version = running.call("GET", "/v1/models/local/lora-training", OTHER).json()["latest_version"]["id"]
    path = f"/v1/models/local/lora-training/versions/{version}/trainings"
    assert running.call("POST", path, OTHER, json=training).status_code == 422
    assert running.call("POST", path, OTHER, json={**training, "destination": "local/lora"}).status_code == 422
    assert running.call("GET", f"/v1/files/{file['id']}", RUN).status_code == 200
    assert running.call("GET", f"/v1/predictions/{job['id']}", ADMIN).status_code == 200


def test_an_open_link_to_another_users_file_is_an_input(running: Running) -> None:
    link = running.draw(RUN, wait=20)["output"][0]
    job = running.draw(OTHER, wait=20, input={"image": link})
    assert job["status"] == "succeeded"
    given = running.engine.inputs[-1]["image"]
    assert running.call("GET", given.removeprefix(running.url)).content == running.call(
        "GET", link.removeprefix(running.url)
    ).content  # fmt: skip
    assert "/files/" not in job["input"]["image"]  # nobody gets a new link to what is another's


def test_tokens_are_made_and_removed_while_the_gateway_runs(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = running.gateway.settings.gateway_folder
    monkeypatch.setenv("GATEWAY_FOLDER", str(folder))
    made = CliRunner().invoke(token_group, ["add", "eve", "--scope", "read"])
    token = made.output.strip()
    assert running.call("GET", "/v1/account", token).json()["username"] == "eve"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert not any(token.encode() in path.read_bytes() for path in files)
    assert "1 removed" in CliRunner().invoke(token_group, ["remove", "eve"]).output
    assert running.call("GET", "/v1/account", token).status_code == 401
    for arguments in (["add", "a/b"], ["add", "eve", "--scope", "all"]):
        assert isinstance(CliRunner().invoke(token_group, arguments).exception, InputError)


@pytest.mark.attack("token")
def test_those_who_guess_tokens_have_to_wait_and_others_have_not(running: Running) -> None:
    answers = [running.call("GET", "/v1/account", f"guess-{number:032}") for number in range(40)]
    assert answers[-1].status_code == 429
    assert int(answers[-1].headers["retry-after"]) >= 1
    assert running.call("GET", "/v1/account", RUN).status_code == 200


@pytest.mark.attack("page")
def test_a_web_page_cannot_ask_a_gateway_without_tokens(tmp_path: Path) -> None:
    with run_gateway(tmp_path) as running:
        assert running.call("GET", "/v1/models", headers={"Host": "evil.example"}).status_code == 403
        assert (
            running.call("POST", DRAW, json={"input": {}}, headers={"Origin": "http://evil.example"}).status_code == 403
        )
        assert running.call("GET", "/v1/models", headers={"Origin": running.url}).status_code == 200
        assert known_hosts(running.gateway) == {"localhost", "127.0.0.1", "::1"}


@pytest.mark.parametrize(
    ("host", "needed"),
    [("127.0.0.1", False), ("::1", False), ("localhost", False), ("0.0.0.0", True), ("::", True), ("10.1.2.3", True)],
)
def test_only_the_loopback_needs_no_tokens(host: str, needed: bool) -> None:
    assert needs_tokens(GatewaySettings(), host) is needed
    assert needs_tokens(GatewaySettings(require_tokens="yes"), host)


@pytest.mark.parametrize("text", ["ann", "ann:run", "ann:all:" + "x" * 16, "ann:run:short", ":run:" + "x" * 16])
def test_unreadable_fixed_tokens_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingError) as raised, run_gateway(tmp_path, api_tokens=text):
        pass
    assert raised.value.field == "API_TOKENS"
    assert text not in str(raised.value) or len(text) < 4


def test_a_bucket_empties_and_fills_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    limit = RateLimit(60)
    waits: list[Any] = [limit.take("ann") for _ in range(61)]
    assert waits == [0.0] * 60 + [1.0]
    assert limit.take("bob") == 0.0
    now[0] = 1.0
    assert limit.take("ann") == 0.0
