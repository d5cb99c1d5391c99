"""Downloading a base model with the hub's own client from a hub on loopback, and loading it without any network."""

import errno
import json
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import SecretStr

from lora_service.cli.main import cli
from lora_service.errors import BaseModelError, InputError
from lora_service.models.hub_download import HubRef, download_base
from lora_service.models.loading import load_base
from lora_service.settings import Settings
from tests.errors import raises
from tests.models.fake_hub import LARGE, FakeHub
from tests.small_base import pipeline_of, small_base

HUB_ID = "painter/small"
UNET = "unet/diffusion_pytorch_model.fp16.safetensors"
NEEDED = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.fp16.safetensors",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "unet/config.json",
    UNET,
    "vae/config.json",
    "vae/diffusion_pytorch_model.fp16.safetensors",
}


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model as the published ones lie on the hub: in two precisions, with files that are not needed."""
    folder = tmp_path_factory.mktemp("repository")
    pipeline = pipeline_of(small_base())
    pipeline.save_pretrained(folder)
    pipeline.save_pretrained(folder, variant="fp16")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "requires_safety_checker": True}
    (folder / "model_index.json").write_text(json.dumps(index))
    for name in ("safety_checker/model.safetensors", "unet/diffusion_pytorch_model.bin", "whole.ckpt", "README.md"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not needed")
    return folder


@pytest.fixture
def hub(repository: Path) -> Iterator[FakeHub]:
    with FakeHub(HUB_ID, repository).running() as running:
        yield running


@pytest.fixture
def settings(hub: FakeHub, tmp_path: Path) -> Settings:
    return Settings(model_cache=tmp_path / "models", hf_endpoint=hub.url, hf_token="hf_secret")


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_only_the_needed_files_are_requested_and_lie_there_under_plain_names(hub: FakeHub, settings: Settings) -> None:
    lines: list[str] = []
    folder = download_base(HUB_ID, settings, log=lines.append)
    assert folder == settings.model_cache / "painter--small"
    assert hub.downloaded() == NEEDED
    assert files_in(folder) == {name.replace(".fp16", "") for name in NEEDED} | {"hub.json"}
    unet = (folder / "unet/diffusion_pytorch_model.safetensors").read_bytes()
    assert unet == (hub.folder / UNET).read_bytes()
    assert json.loads((folder / "hub.json").read_text()) == {"id": HUB_ID, "revision": "", "commit": hub.commit}
    assert len(lines) == len(NEEDED)
    assert not list(settings.model_cache.glob("*.part"))


def test_the_token_goes_to_the_hub_and_not_to_its_file_store(hub: FakeHub, settings: Settings) -> None:
    download_base(HUB_ID, settings)
    tokens = {
        origin: {request.token for request in hub.requests if request.origin == origin} for origin in ("hub", "store")
    }
    assert tokens == {"hub": {"Bearer hf_secret"}, "store": {""}}
    assert {request.path for request in hub.requests if request.origin == "store"} == {
        name for name in NEEDED if name.endswith(LARGE)
    }


def test_an_interrupted_download_leaves_no_folder_and_continues_where_it_stopped(
    hub: FakeHub, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 2**16)  # what it writes at a time: 10 MB
    hub.cut.add(UNET)
    with raises(BaseModelError, code="hub_unavailable"):
        download_base(HUB_ID, settings)
    assert not (settings.model_cache / "painter--small").exists()
    before = len(hub.requests)
    folder = download_base(HUB_ID, settings)
    half = (hub.folder / UNET).stat().st_size // 2 // 2**16 * 2**16
    resumed = [
        request for request in hub.requests[before:] if request.origin == "store" or not request.path.endswith(LARGE)
    ]
    assert [request.range for request in resumed if request.path == UNET] == [f"bytes={half}-"]
    # files that arrived complete are not requested again
    assert {request.path for request in resumed if not request.path.startswith("api/")} == {
        UNET,
        "vae/config.json",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    }
    assert (folder / "unet/diffusion_pytorch_model.safetensors").read_bytes() == (hub.folder / UNET).read_bytes()


def test_a_file_whose_hash_differs_is_refused_and_downloaded_again(hub: FakeHub, settings: Settings) -> None:
    for name in ("unet/config.json", UNET):
        hub.corrupt = {name}
        with raises(BaseModelError, code="hash_mismatch") as caught:
            download_base(HUB_ID, settings)
        assert f"'{name}' of {HUB_ID}" in str(caught.value)
    hub.corrupt = set()
    folder = download_base(HUB_ID, settings)
    assert (folder / "unet/diffusion_pytorch_model.safetensors").read_bytes() == (hub.folder / UNET).read_bytes()


def test_files_changed_in_an_unfinished_download_are_downloaded_again(hub: FakeHub, settings: Settings) -> None:
    hub.cut.add("vae/diffusion_pytorch_model.fp16.safetensors")
    with raises(BaseModelError, code="hub_unavailable"):
        download_base(HUB_ID, settings)
    part = settings.model_cache / "painter--small.part"
    (part / "unet/config.json").write_text("{}")
    (part / "unet/of_another_revision.safetensors").write_text("stale")
    folder = download_base(HUB_ID, settings)
    assert (folder / "unet/config.json").read_bytes() == (hub.folder / "unet/config.json").read_bytes()
    assert files_in(folder) == {name.replace(".fp16", "") for name in NEEDED} | {"hub.json"}


def test_a_downloaded_model_is_not_requested_again(hub: FakeHub, settings: Settings) -> None:
    first = download_base(HUB_ID, settings)
    hub.requests.clear()
    assert download_base(HUB_ID, settings) == first
    assert hub.requests == []


def test_two_concurrent_downloads_of_a_model_transfer_it_once(hub: FakeHub, settings: Settings) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: download_base(HUB_ID, settings), range(2))
    assert first == second
    assert sorted(request.path for request in hub.requests if request.origin == "store") == sorted(
        name for name in NEEDED if name.endswith(LARGE)
    )
    assert [path.name for path in settings.model_cache.iterdir()] == ["painter--small"]


def test_a_revision_has_a_folder_of_its_own(hub: FakeHub, settings: Settings) -> None:
    folder = download_base(f"{HUB_ID}@{hub.commit}", settings)
    assert folder.name == f"painter--small@{hub.commit}"
    assert json.loads((folder / "hub.json").read_text())["revision"] == hub.commit


def test_a_folder_that_holds_something_else_is_left_alone(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with raises(InputError, field="--to"):
        download_base(HUB_ID, settings, to=tmp_path / "mine")
    assert files_in(tmp_path / "mine") == {"thesis.txt"}


def test_the_folder_one_is_in_can_be_filled_if_it_is_empty(
    hub: FakeHub, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert download_base(HUB_ID, settings, to=Path()) == tmp_path / "here"
    assert (tmp_path / "here" / "model_index.json").is_file()
    with raises(InputError, field="--to"):
        download_base(HUB_ID, settings, to=Path("/"))


def test_a_token_that_no_header_can_carry_is_refused(settings: Settings) -> None:
    wrong = settings.model_copy(update={"hf_token": SecretStr("hf_\u00e4")})
    with raises(BaseModelError, code="invalid_hub_answer") as caught:
        download_base(HUB_ID, wrong)
    assert "HF_TOKEN" in str(caught.value)


def test_an_address_that_is_no_hub_is_reported(
    hub: FakeHub, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeHub, "listing", lambda hub: "<html>")
    with raises(BaseModelError, code="invalid_hub_answer") as caught:
        download_base(HUB_ID, settings)
    assert "HF_ENDPOINT" in str(caught.value)


@pytest.mark.parametrize("content", [b"[]", b"{"])
def test_a_model_whose_index_lists_no_components_is_refused(
    content: bytes, repository: Path, settings: Settings, hub: FakeHub, tmp_path: Path
) -> None:
    hub.folder = shutil.copytree(repository, tmp_path / "other")
    (hub.folder / "model_index.json").write_bytes(content)
    with raises(BaseModelError, code="unreadable_model"):
        download_base(HUB_ID, settings)


def test_the_folder_loads_in_plain_diffusers_without_options(settings: Settings) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(download_base(HUB_ID, settings))
    assert pipeline.safety_checker is None


@pytest.mark.parametrize(
    ("status", "code", "named"),
    [
        ((403, "GatedRepo"), "gated", "HF_TOKEN"),
        ((401, "RepoNotFound"), "not_found", "HF_TOKEN"),
        ((404, "RevisionNotFound"), "revision_not_found", "'v9'"),
        ((500, ""), "hub_unavailable", "500"),
    ],
)
def test_a_refusal_of_the_hub_is_one_sentence(
    hub: FakeHub, settings: Settings, status: tuple[int, str], code: str, named: str
) -> None:
    hub.refuse = status
    with raises(BaseModelError, code=code) as caught:
        download_base(f"{HUB_ID}@v9", settings)
    assert "painter/small" in str(caught.value)
    assert named in str(caught.value)


def test_a_hub_that_does_not_answer_is_reported(settings: Settings) -> None:
    nowhere = settings.model_copy(update={"hf_endpoint": "http://127.0.0.1:9"})
    with raises(BaseModelError, code="hub_unavailable"):
        download_base(HUB_ID, nowhere)


def test_a_full_disk_is_reported_before_anything_is_downloaded(
    hub: FakeHub, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(settings.model_cache.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with raises(BaseModelError, code="no_space", field="MODEL_CACHE"):
        download_base(HUB_ID, settings)
    assert hub.downloaded() == set()


def test_a_disk_that_fills_up_during_the_download_is_reported(
    hub: FakeHub, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with raises(BaseModelError, code="no_space", field="MODEL_CACHE"):
        download_base(HUB_ID, settings)


def test_a_folder_that_cannot_be_made_is_reported(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with raises(BaseModelError, code="not_writable"):
        download_base(HUB_ID, settings, to=tmp_path / "file" / "models")


@pytest.mark.parametrize("name", ["embedded", "sd3000", "a/b/c", "/no/folder", "a b/c", "../x/y", ""])
def test_a_name_that_is_no_hub_id_is_refused(name: str, settings: Settings) -> None:
    with raises(InputError, field="the base model"):
        download_base(name, settings)


def test_short_names_stand_for_the_published_models() -> None:
    assert HubRef.parse("sd15@v1") == HubRef("stable-diffusion-v1-5/stable-diffusion-v1-5", "v1")
    assert HubRef.parse("someone/tuned") == HubRef("someone/tuned")


def test_after_the_command_the_base_loads_with_no_network_at_all(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"HF_ENDPOINT": hub.url, "MODEL_CACHE": str(tmp_path), "BASE_MODEL": HUB_ID}.items():
        monkeypatch.setenv(name, value)
    cli(["download-base", HUB_ID], standalone_mode=False)
    assert f"{HUB_ID} is in {tmp_path / 'painter--small'}" in capsys.readouterr().out
    monkeypatch.setattr(socket, "socket", None)
    monkeypatch.setattr(socket, "getaddrinfo", None)
    base = load_base(Settings.from_environment())
    assert (base.name, base.defaults.title, base.prediction_type) == (HUB_ID, "Stable Diffusion 1.5", "epsilon")


def test_a_base_of_the_hub_is_downloaded_when_it_is_loaded(hub: FakeHub, settings: Settings) -> None:
    base = load_base(settings.model_copy(update={"base_model": HUB_ID}))
    assert base.name == HUB_ID
    assert hub.downloaded() == NEEDED
