"""Cog's real server on tiny entries: requests checked, files downloaded, jobs cancelled, failures reported."""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import psutil
import pytest
import requests

from lora_service.errors import EntryError, InputError, ServingError
from lora_service.serving import server as server_module
from lora_service.serving.server import CogServer, ServerAddress
from lora_service.serving.supervisor import Health
from tests.errors import raises

PREDICT = """
import os, time
from typing import Optional
from cog import BaseRunner, Input, Path, Secret

FORMATS = ["png", "jpeg"]

class Predictor(BaseRunner):
    def setup(self): self.ready = True

    def run(
        self,
        steps: int = Input(default=3, ge=1, le=5),
        form: str = Input(default="png", choices=FORMATS),
        file: Optional[Path] = Input(default=None),
        files: list[Path] = Input(default=[]),
        token: Optional[Secret] = Input(default=None),
        scale: Optional[float] = Input(default=None, ge=0),
        sleep: float = 0.0,
    ) -> dict:
        end = time.monotonic() + sleep
        while time.monotonic() < end: time.sleep(0.01)
        return {
            "steps": steps, "form": form, "scale": scale, "ready": self.ready, "folder": os.getcwd(),
            "file": file.read_text() if isinstance(file, Path) else file,
            "files": [path.read_text() for path in files],
            "token": token.get_secret_value() if token else None,
        }
"""
TRAIN = """
from cog import Input, Path

def train(steps: int = Input(default=2, ge=1), word: str = "sks") -> Path:
    print("training", word)
    path = Path("lora.txt")
    path.write_text(f"{steps} {word}")
    return path
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    (folder / "predict.py").write_text(PREDICT)
    (folder / "train.py").write_text(TRAIN)
    return folder


@pytest.fixture(scope="module")
def service(start_service, home):
    return start_service("predict", home=home)


def test_defaults_arrive(service) -> None:
    output = service.output()
    assert output == {
        "steps": 3,
        "form": "png",
        "scale": None,
        "ready": True,
        "folder": str(service.server.folder),
        "file": None,
        "files": [],
        "token": None,
    }


def test_every_bad_input_is_named(service) -> None:
    answer = service.post(steps=6, form="gif", scale=-1, sleep="long")
    assert answer.status_code == 422
    messages = {error["loc"][-1]: error["msg"] for error in answer.json()["detail"]}
    assert messages == {
        "steps": "6 is greater than the maximum of 5",
        "form": '"gif" is not one of ["png","jpeg"]',
        "scale": "-1 is less than the minimum of 0",
        "sleep": '"long" is not of type "number"',
    }


def test_files_and_secrets_arrive(service) -> None:
    link = "data:text/plain;base64,aGVsbG8="
    output = service.output(file=link, files=[link, "data:text/plain,more"], token="secret", scale=0.5, form="jpeg")
    assert output["file"] == "hello"
    assert output["files"] == ["hello", "more"]
    assert (output["token"], output["scale"], output["form"]) == ("secret", 0.5, "jpeg")


def test_the_schema_is_served(service) -> None:
    document = requests.get(f"{service.server.url}/openapi.json", timeout=5).json()
    assert list(document["paths"]) == ["/", "/health-check", "/predictions", "/predictions/{prediction_id}/cancel"]
    properties = document["components"]["schemas"]["Input"]["properties"]
    in_order = sorted(properties, key=lambda name: properties[name]["x-order"])
    assert in_order == ["steps", "form", "file", "files", "token", "scale", "sleep"]


def test_a_running_job_is_busy_and_can_be_cancelled(service) -> None:
    url = f"{service.server.url}/predictions/to-cancel"
    answers: list[requests.Response] = []
    job = threading.Thread(target=lambda: answers.append(requests.put(url, json={"input": {"sleep": 60}}, timeout=30)))
    service.wait_for(Health.READY)
    job.start()
    service.wait_for(Health.BUSY)
    assert requests.post(f"{url}/cancel", json={}, timeout=5).status_code == 200
    job.join(10)
    assert answers[0].json()["status"] == "canceled"
    assert service.output(steps=1)["steps"] == 1


def test_a_cancellation_before_its_job_is_forgotten(service) -> None:
    url = f"{service.server.url}/predictions/cancelled-too-early"
    assert requests.post(f"{url}/cancel", json={}, timeout=5).status_code == 404
    service.wait_for(Health.READY)
    assert requests.put(url, json={"input": {"steps": 1}}, timeout=60).json()["status"] == "succeeded"


@pytest.mark.parametrize("path", ["predictions", "trainings"])
@pytest.mark.parametrize("steps", [1, 0])
def test_a_training_server_takes_both_kinds_of_request(start_service, home, trainer, path, steps) -> None:
    answer = trainer.post(path, steps=steps, word="dog").json()
    if steps:
        assert answer["output"] == "data:text/plain;base64,MSBkb2c="
        assert "training dog" in answer["logs"]
    else:
        assert answer["detail"][0]["msg"] == "0 is less than the minimum of 1"


@pytest.fixture(scope="module")
def trainer(start_service, home):
    return start_service("train", home=home)


class Uploads(BaseHTTPRequestHandler):
    """Keeps what is put to it, by path."""

    files: ClassVar[dict[str, bytes]] = {}

    def do_PUT(self) -> None:
        self.files[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


def test_outputs_are_uploaded_where_the_server_was_told_to(start_service, home) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Uploads) as listener:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{listener.server_port}/outputs/"
        output = start_service("train", home=home, upload_url=url).output(steps=3, word="cat")
        listener.shutdown()
    assert output == f"{url}lora.txt"
    assert Uploads.files == {"/outputs/lora.txt": b"3 cat"}


def test_two_servers_keep_to_their_own_folders(service, trainer) -> None:
    assert service.server.folder != trainer.server.folder
    assert (trainer.server.folder / "server.log").exists()


def test_a_named_folder_is_kept_and_a_temporary_one_removed(home, tmp_path) -> None:
    with CogServer("train", home=home, folder=tmp_path / "work") as kept:
        pass
    assert (kept.folder / ".cog" / "openapi_schema.json").exists()
    with CogServer("train", home=home) as removed:
        assert removed.folder.exists()
    assert not removed.folder.exists()
    assert removed.health() is Health.EXITED


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("    def setup(self): raise RuntimeError('no weights here')\n", "RuntimeError: no weights here"),
        (
            "    import a_module_that_is_not_there\n",
            "ModuleNotFoundError: No module named 'a_module_that_is_not_there'",
        ),
    ],
)
def test_a_failing_setup_is_reported(tmp_path, body, reason) -> None:
    source = f"from cog import BaseRunner\nclass Predictor(BaseRunner):\n{body}    def run(self) -> str: ...\n"
    (tmp_path / "predict.py").write_text(source)
    with CogServer("predict", home=tmp_path) as server, raises(ServingError, code="setup_failed") as caught:
        server.wait_ready()
    assert reason in str(caught.value)


def test_a_worker_killed_in_its_setup_is_reported(tmp_path) -> None:
    setup = "    def setup(self):\n        import os\n        os.kill(os.getpid(), 9)\n"
    source = f"from cog import BaseRunner\nclass Predictor(BaseRunner):\n{setup}    def run(self) -> str: ...\n"
    (tmp_path / "predict.py").write_text(source)
    with CogServer("predict", home=tmp_path) as server, raises(ServingError, code="setup_failed"):
        server.wait_ready()


def test_a_worker_killed_before_the_server_hears_of_it_is_reported(home, tmp_path) -> None:
    python = tmp_path / "python"  # Cog's server starts its worker under that name
    python.write_text("#!/bin/sh\nkill -9 $$\n")
    python.chmod(0o755)
    starting = CogServer("predict", home=home, environment={"PATH": str(tmp_path)})
    with starting as server, pytest.raises(ServingError) as caught:
        server.wait_ready(timeout=60)
    assert caught.value.code in ("worker_exited", "setup_failed"), "the latter where it just got to speak to it"


def test_a_worker_killed_as_its_server_gets_ready_is_reported(home, monkeypatch) -> None:
    # Observed: a worker that dies between its setup's end and the server's first READY leaves it UNHEALTHY for ever.
    monkeypatch.setattr(server_module, "_DEATH_NOTICE_TIME", 0.2)
    with CogServer("predict", home=home) as server:
        server.wait_ready()
        [worker] = psutil.Process(server._process.pid).children()
        worker.kill()
        while server.health() not in (Health.UNHEALTHY, Health.DEFUNCT):
            pass
        with raises(ServingError, code="worker_exited"):
            server.wait_ready(timeout=60)


def test_a_slow_setup_runs_out_of_time(tmp_path) -> None:
    source = "import time\ntime.sleep(60)\ndef train() -> str: ...\n"
    (tmp_path / "train.py").write_text(source)
    with CogServer("train", home=tmp_path) as server, raises(ServingError, code="not_ready"):
        server.wait_ready(timeout=1)


def test_a_server_that_ends_at_once_is_reported(home) -> None:
    expected = raises(ServingError, code="server_exited")
    with CogServer("train", home=home, environment={"PORT": "none"}) as server, expected as caught:
        server.wait_ready()
    assert "ValueError: invalid literal" in str(caught.value)


def test_an_entry_the_build_would_break_is_refused_before_anything_starts(tmp_path) -> None:
    (tmp_path / "train.py").write_text("def train(x: bytes) -> str: ...\n")
    with raises(EntryError, code="unsupported_type", field="x"):
        CogServer("train", home=tmp_path)
    with raises(ServingError, code="entry_missing") as caught:
        CogServer("predict", home=tmp_path)
    assert "predict.py" in str(caught.value)


def test_a_port_in_use_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with raises(ServingError, code="port_in_use") as caught:
            ServerAddress.claim("127.0.0.1", port)
        assert str(port) in str(caught.value)


@pytest.mark.parametrize(
    ("host", "port", "error", "code", "field"),
    [
        ("example.com", 0, InputError, "", "host"),
        ("127.0.0.1", 70000, InputError, "", "port"),
        ("203.0.113.1", 0, ServingError, "port_unavailable", ""),
    ],
)
def test_addresses_that_cannot_be_used(host, port, error, code, field) -> None:
    with raises(error, code=code, field=field):
        ServerAddress.claim(host, port)


@pytest.mark.parametrize(
    ("host", "url"),
    [("0.0.0.0", "http://127.0.0.1:80"), ("::", "http://[::1]:80"), ("192.0.2.7", "http://192.0.2.7:80")],
)
def test_the_url_is_one_for_a_client(host, url) -> None:
    assert ServerAddress(host, 80).url == url
