"""Refused LoRAs leave nothing in memory, however many there are and whatever their tensors are called."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks.request_memory import file_of, long_name, resident, tiny_tensors
from lora_service.errors import LoraServiceError
from lora_service.services.inference_service import InferenceService
from lora_service.settings import Settings
from tests.small_base import small_base

MAX_GROWTH = 40  # MiB


@pytest.mark.campaign
@pytest.mark.attack("refused LoRAs in memory (G6)")
@pytest.mark.parametrize("kind", ["tiny tensors", "a name of 7 MB", "thousands of names"])
def test_refused_loras_leave_nothing(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("lora_service.models.loading.load_base", lambda settings: small_base())
    rng = random.Random(kind)

    def names() -> bytes:
        return file_of([f"lora_unet_{rng.random()}{'y' * 400}.lora_down.weight" for _ in range(5000)], rng)

    make = {"tiny tensors": lambda: tiny_tensors(rng), "a name of 7 MB": lambda: long_name(rng)}.get(kind, names)
    with InferenceService(Settings(lora_cache=tmp_path / "cache"), allow_local=True) as service:

        def refuse(count: int) -> None:
            for _ in range(count):
                (tmp_path / "lora.safetensors").write_bytes(make())
                with pytest.raises(LoraServiceError):
                    service.run({"lora_urls": str(tmp_path / "lora.safetensors")}, log=lambda line: None)

        refuse(2)
        before = resident()
        refuse(8)
        assert resident() - before < MAX_GROWTH
