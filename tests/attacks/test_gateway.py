"""Attacks on a gateway by a stranger, or a user with a token: nothing gets in, nothing leaks, it goes on."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from lora_service.gateway.identifiers import new_id
from tests.gateway.in_process import DRAW, Running, run_gateway
from tests.gateway.receiver import receiving

ANN, EVE, ADMIN = ("anns" * 5, "eves" * 5, "admn" * 5)
TOKENS = f"ann:run:{ANN},eve:run:{EVE},root:admin:{ADMIN}"
LONGEST_ANSWER = 10_000
NAMES = [
    "../../../../tmp/attack",
    "..\\..\\attack",
    "/etc/passwd",
    "a\r\nSet-Cookie: a=b",
    'a"; filename="b.html',
    "a\0b",
    "." * 300,
    "é" * 300,
    "<script>.png",
    "",
    "%2e%2e%2fattack",
    "\u202egnp.exe",
]
WORDS = [
    "%00",
    "a%00b",
    "%2e%2e",
    "%2e%2e%2f%2e%2e%2fkey",
    "%F0%28",
    "x" * 5000,
    "'%20OR%201=1--",
    "%0d%0aa:b",
    "*",
    "%ED%A0%80",
]
BODIES: dict[str, bytes] = {
    "nothing": b"",
    "a brace": b"{",
    "brackets": b"[" * 200_000,
    "objects": b'{"input":' * 50_000,
    "half a character": b'{"input": {"prompt": "\\ud800"}}',
    "half a character in a key": b'{"input": {"\\ud800": 1}}',
    "half a character in a webhook": b'{"input": {}, "webhook": "http://example.com/\\ud800"}',
    "a NUL": b'{"input": {"prompt": "a\\u0000b"}}',
    "a NUL in a webhook": b'{"input": {}, "webhook": "http://example.com/\\u0000"}',
    "a number without end": b'{"input": {"num_outputs": ' + b"9" * 5000 + b"}}",
    "no number": b'{"input": {"seconds": NaN}}',
    "infinity": b'{"input": {"seconds": 1e999}}',
    "nested texts": json.dumps({"input": {"prompt": [[["x"]]] * 1000}}).encode(),
    "a mark": b'{"input": {"prompt": "gateway-file:' + b"a" * 26 + b'"}}',
    "a path": b'{"input": {"image": "file:///etc/passwd"}}',
    "a data URI that is none": b'{"input": {"image": "data:;base64,%%%"}}',
    "an unknown input": json.dumps({"input": {"x" * 100_000: 1}}).encode(),
    "a list": b'{"input": [1]}',
    "a priority": b'{"input": {}, "priority": 1e400}',
    "noise": random.Random(0).randbytes(1000),
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("gateway")
    with run_gateway(folder, require_tokens="yes", api_tokens=TOKENS, rate_limit=100_000, public_url="") as running:
        yield running


def goes_on(running: Running) -> bool:
    """Return True if a job of somebody else is done."""
    return bool(running.finished(running.draw(ANN), ANN)["status"] == "succeeded")


def upload(running: Running, token: str, name: str, kind: str = "image/png", content: bytes = b"abc") -> dict[str, Any]:
    answer = running.call("POST", "/v1/files", token, files={"content": (name, content, kind)})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


@pytest.mark.attack("bodies to the gateway", count=len(BODIES))
def test_a_body_is_answered_shortly_and_the_queue_goes_on(running: Running) -> None:
    for kind, body in BODIES.items():
        answer = running.call("POST", DRAW, EVE, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code < 500, (kind, answer.text)
        assert len(answer.content) < LONGEST_ANSWER, kind
        if answer.status_code == 201:
            assert running.finished(answer.json(), EVE)["status"] in ("succeeded", "failed"), kind
    assert goes_on(running)


@pytest.mark.attack("words in paths of the gateway", count=12 * len(WORDS))
def test_no_word_in_a_path_finds_anything(running: Running) -> None:
    paths = ["/v1/predictions/{}", "/v1/predictions/{}/cancel", "/v1/predictions?cursor={}", "/v1/files/{}",
             "/v1/models/{}/{}", "/v1/models/local/lora/versions/{}", "/v1/deployments/{}/{}",
             "/files/{}/{}?expires=9&signature={}", "/v1/files/streams/{}?expires=9&signature={}",
             "/internal/files/{}/{}/{}", "/internal/jobs/{}/{}", "/internal/uploads/{}/{}"]  # fmt: skip
    for path in paths:
        method = "PUT" if "uploads" in path else "POST" if path.endswith(("cancel", "jobs/{}/{}")) else "GET"
        for word in WORDS:
            with httpx.Client(base_url=running.url, headers={"Authorization": f"Bearer {EVE}"}) as client:
                answer = client.request(method, path.replace("{}", word), content=b"{}" if method != "GET" else None)
            assert 400 <= answer.status_code < 500, (path, word, answer.text)
            assert len(answer.content) < LONGEST_ANSWER


@pytest.mark.attack("names of files", count=len(NAMES))
def test_a_name_never_becomes_a_path_or_a_header(running: Running) -> None:
    folder = running.gateway.settings.gateway_folder
    for name in NAMES:
        body = (
            b'--x\r\nContent-Disposition: form-data; name="content"; filename="'
            + name.encode()
            + b'"\r\n\r\nabc\r\n--x--\r\n'
        )
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        answer = running.call("POST", "/v1/files", EVE, content=body, headers=headers)
        assert answer.status_code in (201, 400, 422), (name, answer.text)
        if answer.status_code == 201:
            given = httpx.get(answer.json()["urls"]["download"])
            assert given.content == b"abc"
            assert "set-cookie" not in given.headers
            assert (folder / "files" / answer.json()["id"]).read_bytes() == b"abc"
    assert not [path for path in folder.rglob("*") if "attack" in path.name or "passwd" in path.name]
    key = running.gateway.signer.sign("uploads")
    job = running.draw(EVE)
    for name in NAMES:
        path = f"/internal/uploads/{key}/{quote(name, safe='') or '-'}"
        answer = running.call("PUT", path, content=b"abc", headers={"X-Prediction-Id": job["id"]})
        assert answer.status_code in (201, 404), (name, answer.text)
    assert not [path for path in folder.rglob("*") if "attack" in path.name or "passwd" in path.name]


@pytest.mark.attack("pages in uploads", count=4)
@pytest.mark.parametrize("kind", ["text/html", "image/svg+xml", "application/xhtml+xml", "text/html; charset=utf-8"])
def test_an_upload_does_not_run_as_a_page(running: Running, kind: str) -> None:
    file = upload(running, EVE, "a.html", kind, b"<script>alert(1)</script>")
    given = httpx.get(file["urls"]["download"])
    assert given.headers["content-type"] == "application/octet-stream"
    assert given.headers["content-disposition"].startswith("attachment")
    assert "sandbox" in given.headers["content-security-policy"]


@pytest.mark.attack("signed links of the gateway", count=8)
def test_a_link_opens_what_it_was_given_for_and_nothing_else(running: Running) -> None:
    mine, theirs = upload(running, EVE, "a.png"), upload(running, ANN, "b.png")
    link = httpx.URL(mine["urls"]["download"])
    job = running.finished(running.draw(ANN), ANN)
    stream = httpx.URL(running.draw(EVE)["urls"]["stream"])
    path, query = f"/files/{theirs['id']}/b.png", link.query.decode()
    tricks = [
        f"{path}?{query}",
        f"{path}?{stream.query.decode()}",
        f"{path}?expires=99999999999&signature={link.params['signature']}",
        f"{path}?expires={link.params['expires']}&signature=",
        f"{link.path}?expires={int(link.params['expires']) + 1}&signature={link.params['signature']}",
        f"/v1/files/streams/{job['id']}?{stream.query.decode()}",
        f"/internal/files/{theirs['id']}/{link.params['signature']}/b.png",
        f"/internal/jobs/{job['id']}/{link.params['signature']}",
    ]
    for trick in tricks:
        assert running.call("POST" if "/jobs/" in trick else "GET", trick, EVE).status_code == 403, trick
    assert httpx.get(str(link)).content == b"abc"


@pytest.mark.attack("others' things by id", count=400)
def test_ids_cannot_be_guessed_and_known_ones_are_of_no_use(running: Running) -> None:
    job, file = running.draw(ANN), upload(running, ANN, "a.png")
    for _ in range(100):
        guess = new_id()
        for known, path in ((job["id"], "/v1/predictions/{}"), (file["id"], "/v1/files/{}")):
            answers = [running.call("GET", path.format(name), EVE) for name in (guess, known)]
            assert [answer.status_code for answer in answers] == [404, 404]
            assert answers[0].json() == answers[1].json()  # not even whether it is there
    assert running.call("POST", f"/v1/predictions/{job['id']}/cancel", EVE).status_code == 404
    assert running.finished(job, ANN)["status"] == "succeeded"


@pytest.mark.attack("tokens guessed", count=1000)
def test_a_thousand_guessed_tokens_open_nothing_and_hold_nobody_up(running: Running) -> None:
    guesses = ["-", "any", ANN[:-1], f"{ANN}x", ANN.upper(), "a" * 10_000, "ann", f"ann:run:{ANN}"]
    guesses += [f"ls_{new_id()}" for _ in range(1000 - len(guesses))]
    with httpx.Client(base_url=running.url) as client:
        codes = {
            client.get("/v1/predictions", headers={"Authorization": f"Bearer {guess}"}).status_code for guess in guesses
        }
        assert codes == {401, 429}
        for scheme in ("Basic", "bearer:", "-"):
            assert client.get("/v1/account", headers={"Authorization": f"{scheme} {ANN}"}).status_code in (401, 429)
    assert running.call("GET", "/v1/account", ANN).status_code == 200


def private_urls() -> Iterator[str]:
    """A thousand addresses of private hosts, written in many ways."""
    chance = random.Random(0)
    forms = ["127.{b}.{c}.{d}", "10.{b}.{c}.{d}", "192.168.{c}.{d}", "172.16.{c}.{d}", "169.254.{c}.{d}",
             "100.64.{c}.{d}", "[::ffff:10.{b}.{c}.{d}]", "[::ffff:7f00:{d:x}]", "[fd00::{d:x}]", "[fe80::{d:x}]",
             "[64:ff9b::7f00:{d:x}]",
             "[2002:7f00:{d:x}::1]", "[::{d:x}]", "0.{b}.{c}.{d}", "{whole}", "0x7f0000{d:02x}", "0177.0.0.{d}",
             "127.{d}", "metadata.localhost", "localhost"]  # fmt: skip
    for number in range(1000):
        parts = {name: chance.randrange(1, 255) for name in "bcd"}
        host = forms[number % len(forms)].format(**parts, whole=0x7F000000 + parts["d"])
        yield f"http://{host}:{chance.choice([80, 8080])}/{number}"


@pytest.mark.attack("webhooks to private addresses", count=1000)
def test_no_webhook_reaches_a_private_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connected: list[Any] = []
    real = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        connected.append(address)
        real(self, address)

    with run_gateway(tmp_path, rate_limit=100_000) as running, receiving() as receiver:
        own = {running.gateway.port}
        monkeypatch.setattr(socket.socket, "connect", connect)
        with httpx.Client(base_url=running.url, timeout=60) as client:
            for url in [*private_urls(), receiver.url]:
                answer = client.post(DRAW, json={"input": {}, "webhook": url})
                assert answer.status_code in (201, 422), url
            last = running.finished(client.post(DRAW, json={"input": {}}).json())
        assert last["status"] == "succeeded"
        assert {address[1] for address in connected} <= own
        assert not receiver.came


@pytest.mark.attack("idle connections", count=300)
def test_idle_connections_hold_nobody_up(running: Running) -> None:
    idle = [socket.create_connection(("127.0.0.1", running.gateway.port), timeout=30) for _ in range(300)]
    try:
        for number, connection in enumerate(idle):
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * (number % 3))
        assert goes_on(running)
    finally:
        for connection in idle:
            connection.close()


@pytest.mark.attack("heads of requests to the gateway", count=8)
@pytest.mark.parametrize(
    "head",
    [b"Content-Length: " + b"9" * 4400, b"Content-Length: -1", b"Content-Length: 1\r\nContent-Length: 2",
     b"Transfer-Encoding: chunked\r\nContent-Length: 3", b"X: " + b"x" * 200_000, b"X: \xff\xfe",
     b"Range: bytes=0-" + b"9" * 9999, b"Prefer: wait=" + b"9" * 5000],
)  # fmt: skip
def test_a_head_is_answered_and_the_gateway_goes_on(running: Running, head: bytes) -> None:
    with socket.create_connection(("127.0.0.1", running.gateway.port), timeout=30) as connection:
        start = (
            f"POST {DRAW} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {EVE}\r\nConnection: close\r\n".encode()
        )
        connection.sendall(start + head + b"\r\n\r\n0\r\n\r\n")
        answer = connection.recv(4096)
    assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 201"))
    assert goes_on(running)
