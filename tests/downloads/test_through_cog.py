"""Links through the real inference server: a Drive share link draws, and every failure is one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import trustme

from lora_service.lora.files import write_lora
from lora_service.lora.weights import LoraLayer, LoraWeights
from lora_service.models.defaults import EMBEDDED
from tests.downloads.link_fakes import Exchange, FakeSites

DRIVE = "https://drive.google.com/file/d/1AbCdEfGh/view?usp=sharing"
FILE = "https://files.example.org/a.safetensors"
HUB = "https://huggingface.co/o/m/blob/main/a.safetensors"
CIVITAI = "https://civitai.com/api/download/models/202"
PICTURE = {"prompt": "a photo of ohwx on the beach", "seed": 3, "num_inference_steps": 2}
_DRIVE_FORM = b"""<form id="download-form" action="https://drive.usercontent.google.com/download" method="get">
    <input type="hidden" name="id" value="1AbCdEfGh"><input type="hidden" name="uuid" value="u"></form>"""
_DRIVE_QUOTA = b'<p class="uc-error-subcaption">Too many users have viewed this file.</p>'


@pytest.fixture(scope="module")
def cog_sites(authority: trustme.CA) -> Iterator[FakeSites]:
    with FakeSites(authority) as fake:
        yield fake


@pytest.fixture(scope="module")
def drawer(start_service: Any, cog_sites: FakeSites, tmp_path_factory: pytest.TempPathFactory) -> Any:
    environment = cog_sites.environment(tmp_path_factory.mktemp("names"))
    cache = {"LORA_CACHE": str(tmp_path_factory.mktemp("cache")), "BASE_MODEL": "embedded", "TORCH_THREADS": "1"}
    return start_service("predict", environment=environment | cache)


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A LoRA for the embedded base that changes one layer a lot."""
    generator = torch.Generator().manual_seed(0)
    path = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    unet = json.loads((EMBEDDED / "unet" / "config.json").read_text())
    width, channels = unet["cross_attention_dim"], unet["block_out_channels"][-1]
    layer = LoraLayer(torch.randn(4, width, generator=generator), torch.randn(channels, 4, generator=generator), 4.0)
    file = tmp_path_factory.mktemp("made") / "a.safetensors"
    write_lora(file, LoraWeights(layers={"unet": {path: layer}}))
    return file.read_bytes()


def test_a_drive_link_draws_through_the_form_of_a_large_file(drawer: Any, cog_sites: FakeSites, lora: bytes) -> None:
    def answer(exchange: Exchange) -> None:
        if exchange.query.get("uuid"):
            exchange.file(lora)
        else:
            exchange.send(_DRIVE_FORM, Content_Type="text/html")

    cog_sites.route("drive.usercontent.google.com", "/download", answer)
    base = drawer.output(**PICTURE)
    assert drawer.output(lora_urls=DRIVE, **PICTURE) != base
    assert drawer.output(lora_urls=DRIVE, lora_scales="0", **PICTURE) == base


FAILURES: list[tuple[str, Callable[[Exchange], None], str]] = [
    (
        DRIVE.replace("1Ab", "2Ab"),
        lambda e: e.send(_DRIVE_QUOTA, Content_Type="text/html"),
        "Too many users have viewed",
    ),
    (
        DRIVE.replace("1Ab", "3Ab"),
        lambda e: e.redirect("https://accounts.google.com/ServiceLogin"),
        "Anyone with the link",
    ),
    (DRIVE.replace("1Ab", "4Ab"), lambda e: e.send(b"", 404), "Google Drive has no such file"),
    (HUB, lambda e: e.send(b"{}", 401), "huggingface.co"),
    (CIVITAI, lambda e: e.send(b"{}", 404), "https://civitai.com/models/202"),
    ("https://www.dropbox.com/scl/fi/x/a.safetensors", lambda e: e.page(200, "Dropbox"), "Dropbox"),
    (FILE + "?1", lambda e: e.file(b"version https://git-lfs.github.com/spec/v1\n"), "LFS"),
    (FILE, lambda e: e.page(200, "Welcome"), "Welcome"),
    (FILE + "?2", lambda e: e.redirect(FILE + "?2"), "redirect"),
    (FILE + "?3", lambda e: e.redirect("http://169.254.169.254/latest"), "169.254.169.254"),
    (FILE + "?4", lambda e: e.file(b"PK\x03\x04 a zip" + b"\0" * 600), "archive"),
    (FILE + "?5", lambda e: e.send(b"", 410), "410"),
]
HOSTS = {
    "drive.google.com": ("drive.usercontent.google.com", "/download"),
    "huggingface.co": ("huggingface.co", "/o/m/resolve/main/a.safetensors"),
    "civitai.com": ("civitai.com", "/api/download/models/202"),
    "www.dropbox.com": ("www.dropbox.com", "/scl/fi/x/a.safetensors"),
    "files.example.org": ("files.example.org", "/a.safetensors"),
}


@pytest.mark.parametrize(("link", "answer", "words"), FAILURES, ids=[f"{i}" for i in range(len(FAILURES))])
def test_a_failure_reaches_the_client_as_one_sentence(
    link: str, answer: Callable[[Exchange], None], words: str, drawer: Any, cog_sites: FakeSites
) -> None:
    cog_sites.route(*HOSTS[link.split("/")[2]], answer)
    body = drawer.post(lora_urls=link, **PICTURE).json()
    assert body["status"] == "failed", body
    assert words in body["error"]
    assert "\n" not in body["error"]
    assert body["error"].endswith(".")


def test_the_server_still_draws_afterwards(drawer: Any, cog_sites: FakeSites, lora: bytes) -> None:
    cog_sites.route("files.example.org", "/a.safetensors", lambda e: e.file(lora))
    assert drawer.output(lora_urls=FILE + "?6", **PICTURE) != drawer.output(**PICTURE)
