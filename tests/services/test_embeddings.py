"""Textual inversions by link, on their way through the cache to the prompt."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_service.errors import InputError, LinkError
from lora_service.lora.files import write_lora
from lora_service.services.inference_service import InferenceService
from lora_service.settings import Settings
from tests.errors import raises
from tests.lora.lora_fakes import random_lora, save
from tests.small_base import small_base

DRAW = {"prompt": "a data photo", "num_inference_steps": 1, "seed": 1}


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InferenceService]:
    monkeypatch.setattr("lora_service.models.loading.load_base", lambda settings, for_training=False: small_base())
    with InferenceService(Settings(lora_cache=tmp_path / "cache"), allow_local=True) as service:
        yield service


def data_uri(path: Path) -> str:
    return "data:application/octet-stream;base64," + base64.b64encode(path.read_bytes()).decode()


def draw(service: InferenceService, **inputs: Any) -> tuple[bytes, list[str]]:
    lines: list[str] = []
    (path,) = service.run(DRAW | inputs, log=lines.append)
    return path.read_bytes(), lines


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_an_embedding_by_link_changes_what_its_word_draws(service: InferenceService, tmp_path: Path, kind: str) -> None:
    rows = torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
    path = tmp_path / f"data.{kind}"
    if kind == "pt":
        torch.save({"string_to_param": {"*": rows}}, path)
    else:
        save(path, {"emb_params": rows})
    bare, _ = draw(service)
    for link in (data_uri(path), str(path)):
        drawn, lines = draw(service, embedding_urls=link)
        assert drawn != bare
        assert "embedding 1: 'data'" in lines
    assert draw(service)[0] == bare


def test_pickles_are_taken_as_embeddings_only(service: InferenceService, tmp_path: Path) -> None:
    torch.save({"string_to_param": {"*": torch.zeros(1, 32)}}, tmp_path / "a.pt")
    with raises(LinkError, code="not_a_lora", field="lora_urls"):
        draw(service, lora_urls=data_uri(tmp_path / "a.pt"))


def test_a_lora_is_no_embedding(service: InferenceService, tmp_path: Path) -> None:
    write_lora(tmp_path / "a.safetensors", random_lora(small_base().components))
    with raises(InputError, code="not_an_embedding", field="embedding_urls"):
        draw(service, embedding_urls=str(tmp_path / "a.safetensors"))


def test_too_many_are_refused(service: InferenceService) -> None:
    with raises(InputError, field="embedding_urls"):
        draw(service, embedding_urls="|".join(f"https://example.org/{n}.pt" for n in range(17)))
