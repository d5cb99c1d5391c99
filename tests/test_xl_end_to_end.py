"""The whole job on a small Stable Diffusion XL as BASE_MODEL: on the command line and through Cog's servers."""

import base64
import functools
import http.server
import json
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lora_service.cli.main import cli
from lora_service.lora.files import read_lora
from lora_service.models.families.sdxl import SDXL_BASE
from tests.small_base import DEFAULTS, picture_zip, pipeline_of, small_base

STEPS = {"task": "object", "class_word": "dog", "seed": 7, "max_train_steps_ti": 2, "max_train_steps_tuning": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small XL in diffusers' layout that says of itself what suits it."""
    folder = tmp_path_factory.mktemp("bases") / "small-xl"
    pipeline_of(small_base(family="sdxl")).save_pretrained(folder)
    defaults = replace(SDXL_BASE, resolution=DEFAULTS.resolution, bucket_step=8, num_inference_steps=2)
    (folder / "base.json").write_text(json.dumps(asdict(defaults)))
    return folder


@pytest.fixture(scope="module")
def environment(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    cache = str(tmp_path_factory.mktemp("cache"))
    return {"BASE_MODEL": str(folder), "TORCH_THREADS": "1", "LORA_CACHE": cache, "ALLOW_PRIVATE_ADDRESSES": ""}


def test_on_the_command_line(
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    archive, lora = picture_zip(tmp_path / "p.zip"), tmp_path / "dog.safetensors"
    options = [f"--{name}={value}" for name, value in STEPS.items()]
    _run("train", str(archive), "-o", str(lora), *options)
    _run("generate", "a photo of <1>", "--lora", str(lora), "-o", str(tmp_path / "out"))
    with Image.open(tmp_path / "out" / "picture-1.png") as drawn:
        assert drawn.size == (32, 32)
    capsys.readouterr()
    _run("inspect", str(lora), "--json")
    told = json.loads(capsys.readouterr().out)
    assert told["metadata"]["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert told["metadata"]["ss_base_model_version"] == "sdxl_base_v1-0"
    assert told["tokens"] == ["<s1>", "<s2>"]
    for layout in ("diffusers", "kohya"):
        _run("convert", str(lora), "--to", layout, "-o", str(tmp_path / f"{layout}.safetensors"))
        assert set(read_lora(tmp_path / f"{layout}.safetensors").layers) == {"unet", "text_encoder", "text_encoder_2"}


def _run(*arguments: str) -> None:
    cli.main(list(arguments), standalone_mode=False)  # what goes wrong is raised


def test_through_cogs_servers(environment: dict[str, str], tmp_path: Path, start_service: Any) -> None:
    zipped = base64.b64encode(picture_zip(tmp_path / "p.zip").read_bytes()).decode()
    trainer = start_service("train", environment=environment)
    made = trainer.output(instance_data=f"data:application/zip;base64,{zipped}", **STEPS)
    lora = tmp_path / "dog.safetensors"
    lora.write_bytes(base64.b64decode(made.partition(",")[2]))
    assert set(read_lora(lora).embeddings["<s1>"]) == {"text_encoder", "text_encoder_2"}

    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        allowed = environment | {"ALLOW_PRIVATE_ADDRESSES": "127.0.0.1:*"}
        drawer = start_service("predict", environment=allowed)
        link = f"http://127.0.0.1:{served.server_port}/dog.safetensors"
        picture = {"prompt": "a photo of <1>", "seed": 5}
        base = drawer.output(**picture)
        assert drawer.output(lora_urls=link, lora_scales="0", **picture) == base
        assert drawer.output(lora_urls=link, lora_scales="1.5", **picture)[0].startswith("data:image/png")
        served.shutdown()
