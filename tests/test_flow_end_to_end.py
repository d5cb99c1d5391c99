"""The whole job on small transformers as BASE_MODEL: on the command line, and a Z-Image's through Cog's servers."""

from __future__ import annotations

import base64
import functools
import http.server
import json
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lora_service.cli.main import cli
from lora_service.lora.files import read_lora
from tests.small_base import picture_zip
from tests.small_flow import flow_pipeline_of, small_flow_base

STEPS = {"task": "object", "class_word": "dog", "seed": 7, "max_train_steps_tuning": 2, "samples": 1}
ARCHITECTURES = {
    "flux2-klein": "flux-2-klein/lora", "zimage": "z-image/lora", "sd3": "stable-diffusion-v3.5-medium/lora",
}  # fmt: skip


@pytest.fixture(scope="module")
def environments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """The environment of each family: a small base in diffusers' layout that says of itself what suits it."""
    cache = str(tmp_path_factory.mktemp("cache"))
    made = {}
    for family in ARCHITECTURES:
        folder, base = tmp_path_factory.mktemp("bases") / family, small_flow_base(family)
        flow_pipeline_of(base).save_pretrained(folder)
        (folder / "base.json").write_text(json.dumps(asdict(base.defaults)))
        made[family] = {"BASE_MODEL": str(folder), "TORCH_THREADS": "1", "LORA_CACHE": cache}
    return made


def _run(*arguments: str) -> None:
    cli.main(list(arguments), standalone_mode=False)  # what goes wrong is raised


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_on_the_command_line(
    family: str,
    environments: dict[str, dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in environments[family].items():
        monkeypatch.setenv(name, value)
    archive, lora = picture_zip(tmp_path / "p.zip"), tmp_path / "dog.safetensors"
    learns_text = family == "sd3"
    steps = STEPS | ({"max_train_steps_ti": 1} if learns_text else {})
    options = [f"--{name}={value}" for name, value in steps.items()]
    _run("check", str(archive), *options)
    _run("train", str(archive), "-o", str(lora), *options)
    said = "".join(capsys.readouterr())
    assert ("has no stage 1" in said) is not learns_text
    assert ("which learns no new tokens, reads" in said) is learns_text
    weights = read_lora(lora)
    assert set(weights.layers) == {"transformer"}
    assert bool(weights.embeddings) is learns_text
    assert weights.metadata["modelspec.architecture"] == ARCHITECTURES[family]
    _run("generate", "a photo of <1>", "--lora", str(lora), "-o", str(tmp_path / "out"))
    with Image.open(tmp_path / "out" / "picture-1.png") as drawn:
        assert drawn.size == (32, 32)
    _run("convert", str(lora), "--to", "diffusers", "-o", str(tmp_path / "diffusers.safetensors"))
    assert set(read_lora(tmp_path / "diffusers.safetensors").layers) == {"transformer"}


def test_through_cogs_servers(environments: dict[str, dict[str, str]], tmp_path: Path, start_service: Any) -> None:
    environment = environments["zimage"] | {"ALLOW_PRIVATE_ADDRESSES": ""}
    zipped = base64.b64encode(picture_zip(tmp_path / "p.zip").read_bytes()).decode()
    trainer = start_service("train", environment=environment)
    made = trainer.output(instance_data=f"data:application/zip;base64,{zipped}", **STEPS)
    lora = tmp_path / "dog.safetensors"
    lora.write_bytes(base64.b64decode(made.partition(",")[2]))
    assert set(read_lora(lora).layers) == {"transformer"}

    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        drawer = start_service("predict", environment=environment | {"ALLOW_PRIVATE_ADDRESSES": "127.0.0.1:*"})
        link = f"http://127.0.0.1:{served.server_port}/dog.safetensors"
        picture = {"prompt": "a photo of <1>", "seed": 5}
        base = drawer.output(**picture)
        assert drawer.output(lora_urls=link, lora_scales="0", **picture) == base
        assert drawer.output(lora_urls=link, lora_scales="1.5", **picture)[0].startswith("data:image/png")
        served.shutdown()
