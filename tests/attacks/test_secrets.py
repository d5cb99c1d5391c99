"""Secrets in links, in whatever input and however spelled, are in no error, no log and no metric."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from lora_service.errors import LoraServiceError
from lora_service.services.inference_service import InferenceService
from lora_service.services.training_service import TrainingService, TrainingUpload
from lora_service.settings import Settings
from tests.small_base import small_base

SECRET = "SeCrEt0123456789"
LINKS = {
    "query": f"https://files.example.invalid/a.safetensors?token={SECRET}",
    "signature": f"https://files.example.invalid/a.zip?X-Amz-Credential=a%2Fb&X-Amz-Signature={SECRET}#x",
    "fragment": f"https://files.example.invalid/a.safetensors#{SECRET}",
    "password": f"https://user:{SECRET}@files.example.invalid/a.safetensors",
    "user": f"https://{SECRET}@files.example.invalid/a.safetensors",
    "password with @": f"https://user:x@{SECRET}@files.example.invalid/a",
    "password with ?": f"https://user:{SECRET}?x@files.example.invalid/a",
    "password with #": f"https://user:x#{SECRET}@files.example.invalid/a",
    "no scheme": f"user:{SECRET}@files.example.invalid/a.safetensors",
    "other scheme": f"ftp://user:{SECRET}@files.example.invalid/a.safetensors",
    "unknown scheme": f"s3+x://user:{SECRET}@bucket/a?sig={SECRET}",
    "a link in a link": f"https://files.example.invalid/https://u:{SECRET}@b.invalid/a?key={SECRET}",
    "a search's link": f"https://www.google.com/url?q=https://u:{SECRET}@files.example.invalid/a",
    "a port": f"https://files.example.invalid:22/a?token={SECRET}",
    "a broken host": f"https://[files/a?token={SECRET}",
    "a backslash": f"https://files.example.invalid\\@u:{SECRET}@b/a?{SECRET}",
    "a tab": f"https://files.example.invalid/a?x\t{SECRET}",
    "a site's page": f"https://civitai.com/user/somebody?token={SECRET}",
    "markdown": f"[a lora](https://files.example.invalid/a?token={SECRET})",
    "a loopback": f"http://127.0.0.1/a?token={SECRET}",
    "half a character": f"https://files.example.invalid/\ud800?token={SECRET}",
    "a long one": f"https://files.example.invalid/{'a' * 9000}?token={SECRET}",
    "a long password": f"https://u:{'a' * 9000}{SECRET}@files.example.invalid/",
}
INFERENCE = ("lora_urls", "several", "image", "lora", "replicate_weights")
TRAINING = ("instance_data", "instance_data_urls", "both", "several")


def draw(field: str, link: str, seen: list[str]) -> None:
    with InferenceService(Settings()) as service:
        inputs = {"lora_urls": link} if field == "lora_urls" else {}
        inputs = {"lora_urls": "|".join([link] * 9)} if field == "several" else inputs
        files = {} if inputs else {field: link}
        service.run(inputs, **files, **_recorded(seen))  # type: ignore[arg-type]


def train(field: str, link: str, seen: list[str]) -> None:
    links = "\n".join([link] * 1001) if field == "several" else "" if field == "instance_data" else link
    file = link if field in ("instance_data", "both") else None
    with TrainingService(Settings()) as service:
        service.train(TrainingUpload(file, links), {"task": "object"}, **_recorded(seen))


def _recorded(seen: list[str]) -> dict[str, Any]:
    return {"log": seen.append, "record_metric": lambda name, value: seen.append(str(value))}


@pytest.mark.attack("tokens in errors and logs (G3)")
@pytest.mark.parametrize("spelling", LINKS)
@pytest.mark.parametrize("job_field", [*((draw, name) for name in INFERENCE), *((train, name) for name in TRAINING)],
                         ids=lambda pair: f"{pair[0].__name__} {pair[1]}")  # fmt: skip
def test_a_secret_is_shown_nowhere(
    spelling: str, job_field: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("lora_service.models.loading.load_base", lambda settings, for_training=False: small_base())
    job, field = job_field
    seen: list[str] = []
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed), pytest.raises(LoraServiceError) as caught:
        job(field, LINKS[spelling], seen)
    for text in (*seen, str(caught.value), printed.getvalue(), caplog.text):
        assert SECRET not in text
