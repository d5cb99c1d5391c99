"""The LoRAs of a request: trained weights, uploads, links and data URIs, and what they are called."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_service.errors import InputError, LinkError, LoraFileError
from lora_service.generation.generator import ImageGenerator
from lora_service.generation.references import expand_references
from lora_service.generation.request import GenerateRequest
from lora_service.lora.files import write_lora
from lora_service.lora.weights import LoraWeights
from lora_service.services.inference_service import InferenceService
from lora_service.services.training_service import TrainingUpload
from lora_service.settings import Settings
from lora_service.training.inputs.config import TrainConfig
from tests.downloads.link_fakes import QUICK, FakeSites
from tests.errors import raises
from tests.lora.test_archive import packed
from tests.small_base import small_base

INPUTS = {"num_inference_steps": 1, "seed": 1, "guidance_scale": 1}
WIDTH = 32
Service = Callable[..., InferenceService]


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Service]:
    """Make services on a tiny base; ``sites`` are the only network."""
    monkeypatch.setattr("lora_service.models.loading.load_base", lambda settings: small_base())
    made: list[InferenceService] = []

    def make(sites: FakeSites | None = None, **options: Any) -> InferenceService:
        settings = Settings(lora_cache=tmp_path / "cache", max_download_bytes=1024**2)
        made.append(InferenceService(settings, **options))
        if sites:
            made[-1].loras.fetcher = sites.fetcher(tmp_path / "cache", QUICK)
        return made[-1]

    yield make
    for each in made:
        each.close()


def file_of(folder: Path, name: str, format: str = "kohya") -> Path:
    """Write a LoRA of one token, named ``<name>``."""
    width = small_base().text.encoders["text_encoder"].config.hidden_size
    path = folder / f"{name}.safetensors"
    rows = {f"<{name}>": {"text_encoder": torch.full((width,), float(len(name)))}}
    write_lora(path, LoraWeights({}, rows), format=format)
    return path


def data_uri(path: Path) -> str:
    return f"data:application/octet-stream;base64,{base64.b64encode(path.read_bytes()).decode()}"


def prompt_of(service: InferenceService, inputs: dict[str, Any], **sources: Any) -> str:
    """Return the prompt after its references were expanded."""
    settings: list[dict[str, Any]] = []
    save = service._save
    service._save = lambda request, images: settings.append(dict(images[0][1].settings)) or save(request, images)  # type: ignore
    service.run(INPUTS | inputs, **sources, log=lambda line: None)
    return str(settings[0]["prompt"])


@pytest.mark.parametrize("suffix", ["safetensors", "tar"])
def test_trained_weights_are_the_first_lora(service: Service, tmp_path: Path, suffix: str) -> None:
    trained = file_of(tmp_path, "trained")
    if suffix == "tar":
        trained = packed(tmp_path / "trained_model.tar", {"lora.safetensors": trained.read_bytes()})
    link, upload = data_uri(file_of(tmp_path, "link")), file_of(tmp_path, "upload")
    made = service(weights=str(trained))
    made.warm_up()
    assert prompt_of(made, {"prompt": "<1>"}) == "<trained>"
    assert prompt_of(made, {"prompt": "<1> <2> <3>", "lora_urls": link}, lora=upload) == "<trained> <upload> <link>"
    other = data_uri(file_of(tmp_path, "other"))
    assert prompt_of(made, {"prompt": "<1> <2>", "lora_urls": link}, replicate_weights=other) == "<other> <link>"


def test_scales_count_all_loras(service: Service, tmp_path: Path) -> None:
    trained, link = file_of(tmp_path, "trained"), data_uri(file_of(tmp_path, "link"))
    made = service(weights=trained)
    inputs = {"prompt": "a <1><2>", "lora_urls": link}
    assert prompt_of(made, inputs | {"lora_scales": "0|1"}) == "a <link>"
    with raises(InputError, field="lora_scales"):
        made.run(INPUTS | inputs | {"lora_scales": "1|1|1"})


def test_weights_that_are_gone_fail_the_setup(service: Service, tmp_path: Path) -> None:
    with raises(LinkError, field="COG_WEIGHTS", code="no_such_file"):
        service(weights=str(tmp_path / "gone.safetensors")).warm_up()


@pytest.mark.attack("long error texts (G2)")
def test_a_long_data_uri_is_a_lora_up_to_the_limit_of_downloads(service: Service, tmp_path: Path) -> None:
    uri = data_uri(file_of(tmp_path, "dog"))
    padded = uri.replace(",", "," + " " * 30_000)
    assert prompt_of(service(), {"prompt": "<1>", "lora_urls": padded}) == "<dog>"
    large = "data:;base64," + base64.b64encode(bytes(1024**2 + 3)).decode()
    with raises(LinkError, field="lora_urls", code="too_large"):
        service().run(INPUTS | {"lora_urls": large})
    with raises(InputError, field="lora_urls") as caught:
        service().run(INPUTS | {"lora_urls": "https://example.org/" + "a" * 9000})
    assert len(str(caught.value)) < 500


@pytest.mark.attack("tokens in errors and logs (G3)")
def test_what_cog_did_not_download_is_no_upload(service: Service) -> None:
    for name, link in (("lora", "u:SECRET@host"), ("image", "https://u:SECRET@host/a?token=SECRET")):
        with raises(InputError, field=name) as caught:
            service().run(INPUTS, **{name: link})
        assert "SECRET" not in str(caught.value)


def test_an_embedding_by_link_is_called_by_its_file(service: Service, tmp_path: Path, sites: FakeSites) -> None:
    body = file_of(tmp_path, "x", "embedding").read_bytes()
    sites.serve("https://files.example.org/easynegative.safetensors", body)
    sites.serve("https://files.example.org/7", body, Content_Disposition='attachment; filename="bad hands.safetensors"')
    sites.route(
        "files.example.org", "/emb.safetensors", lambda e: e.redirect("https://storage.example.org/" + "0a" * 32)
    )
    sites.serve("https://storage.example.org/" + "0a" * 32, body)
    made = service(sites)
    for link, name in (("easynegative.safetensors", "easynegative"), ("7", "bad_hands"), ("emb.safetensors", "emb")):
        for _ in range(2):  # downloaded, and from the cache
            assert prompt_of(made, {"prompt": "<1>", "lora_urls": f"https://files.example.org/{link}"}) == name


def test_an_error_names_the_file_of_a_link(service: Service, tmp_path: Path, sites: FakeSites) -> None:
    from tests.downloads.link_fakes import safetensors

    sites.serve("https://files.example.org/my%20dog.safetensors", safetensors(name="what.is.this"))
    with raises(LoraFileError, field="lora_urls", code="unknown_format") as caught:
        service(sites).run(INPUTS | {"lora_urls": "https://files.example.org/my%20dog.safetensors"})
    assert str(caught.value).startswith("my dog.safetensors: ")


@pytest.mark.attack("full, read-only and damaged caches (G7)")
def test_a_copy_that_was_damaged_is_fetched_again(service: Service, tmp_path: Path, sites: FakeSites) -> None:
    body = file_of(tmp_path, "dog").read_bytes()
    sites.serve("https://files.example.org/dog.safetensors", body)
    inputs = {"prompt": "<1>", "lora_urls": "https://files.example.org/dog.safetensors"}
    assert prompt_of(service(sites), inputs) == "<dog>"
    (copy,) = (tmp_path / "cache" / "objects").iterdir()
    copy.write_bytes(bytes(len(body)))
    assert prompt_of(service(sites), inputs) == "<dog>"
    assert copy.read_bytes() == body


@pytest.mark.attack("tokens in errors and logs (G3)")
def test_links_of_a_training_are_quoted_without_secrets() -> None:
    link = "https://example.org/a.zip?token=SECRET"
    for upload in (TrainingUpload(link, ""), TrainingUpload(Path("a.zip"), f"{link} {link}")):
        with raises(InputError) as caught:
            upload.check(TrainConfig())
        assert "SECRET" not in str(caught.value)
    with raises(InputError, field="lora_urls") as caught:
        GenerateRequest.of({"lora_urls": "|".join([link] * 9)})
    assert "SECRET" not in str(caught.value)


@pytest.mark.attack("sizes beyond the base (G10)")
def test_a_request_of_hours_is_refused(service: Service) -> None:
    made = service()
    made._generator = ImageGenerator(small_base(), 32 * 32 * 10)
    made.run(INPUTS | {"prompt": "a", "width": 32, "height": 32, "num_inference_steps": 5, "num_outputs": 2})
    with raises(InputError, code="too_much_work", field="num_inference_steps"):
        made.run(INPUTS | {"prompt": "a", "num_inference_steps": 6, "num_outputs": 2})


@pytest.mark.attack("raw Python errors (G10)")
def test_a_prompt_is_bounded_and_of_whole_characters() -> None:
    for name in ("prompt", "negative_prompt", "lora_urls"):
        with raises(InputError, field=name):
            GenerateRequest.of({name: "a \ud800"})
    for name in ("custom_prompts", "trigger"):
        with raises(InputError, field=name):
            TrainConfig.of({name: '["a {} \ud800"]'})
    with raises(InputError, field="prompt", code="prompt_too_long"):
        expand_references("<1>" * 1666, ["<token>" * 256])


def test_the_same_link_is_parsed_once(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_service.lora import files

    read: list[Path] = []
    read_lora = files.read_lora
    monkeypatch.setattr(files, "read_lora", lambda path, name="", **more: read.append(path) or read_lora(path, name))
    made, link = service(), data_uri(file_of(tmp_path, "dog"))
    hits: list[object] = []
    for _ in range(3):
        metrics: dict[str, object] = {}
        made.run(INPUTS | {"lora_urls": link}, log=lambda line: None, record_metric=metrics.__setitem__)
        hits.append((metrics["loras"], metrics["loras_in_memory"]))
    assert len(read) == 1
    assert hits == [(1, 0), (1, 1), (1, 1)]
