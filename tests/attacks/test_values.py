"""Values that no person types: megabytes, half characters, endless brackets, sizes of hours."""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest

from lora_service.dataset.load import load_dataset
from lora_service.dataset.options import DatasetOptions
from lora_service.downloads.resolve import resolve, split
from lora_service.errors import InputError, LinkError, LoraServiceError, PicturesError
from lora_service.generation.generator import ImageGenerator
from lora_service.generation.request import GenerateRequest
from lora_service.services.inference_service import InferenceService
from lora_service.services.training_service import TrainingService, TrainingUpload
from lora_service.settings import Settings
from lora_service.training.inputs.config import TrainConfig
from tests.dataset.picture_makers import png, zipped
from tests.errors import raises
from tests.small_base import small_base

LONG = 9_000_000
LONGEST_MESSAGE = 5000
SECONDS = 5  # of a processor
TEXT_INPUTS = [
    *((GenerateRequest, name) for name, field in GenerateRequest.model_fields.items() if field.annotation is str),
    *((TrainConfig, name) for name, field in TrainConfig.model_fields.items() if field.annotation is str),
]


@pytest.fixture
def inference(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[InferenceService]:
    monkeypatch.setattr("lora_service.models.loading.load_base", lambda settings, for_training=False: small_base())
    with InferenceService(Settings(lora_cache=tmp_path / "cache")) as service:
        yield service


class Recorder:
    """Records what a client and an operator see of a job: its log and its metrics."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.metrics: dict[str, Any] = {}

    def options(self) -> dict[str, Callable[..., None]]:
        return {"log": self.lines.append, "record_metric": self.metrics.__setitem__}

    @property
    def longest(self) -> int:
        return max(map(len, [*self.lines, *map(str, self.metrics.values())]), default=0)


def in_time(started: float) -> bool:
    return time.process_time() - started < SECONDS


@pytest.mark.attack("long error texts (G2)")
@pytest.mark.parametrize("character", ["x", "\0", "|", "\u202e"], ids=ascii)
@pytest.mark.parametrize(("model", "name"), TEXT_INPUTS, ids=lambda value: getattr(value, "__name__", value))
def test_nine_megabytes_in_an_input_are_cut_in_its_error(model: Any, name: str, character: str) -> None:
    started, message = time.process_time(), ""
    try:
        model.of({name: character * LONG})
    except LoraServiceError as error:
        message = str(error)
    assert len(message) < LONGEST_MESSAGE
    assert message.isprintable()
    assert in_time(started)


@pytest.mark.attack("long error texts (G2)")
@pytest.mark.parametrize("name", ["image", "lora", "replicate_weights"])
def test_twenty_megabytes_in_place_of_a_file_are_cut(inference: InferenceService, name: str) -> None:
    seen, started = Recorder(), time.process_time()
    with raises(LoraServiceError, field=name) as caught:
        inference.run({"prompt": "a dog"}, **{name: "x" * 20_000_000}, **seen.options())
    assert len(str(caught.value)) < LONGEST_MESSAGE
    assert seen.longest < LONGEST_MESSAGE
    assert in_time(started)


@pytest.mark.attack("long error texts (G2)")
def test_a_defect_with_an_error_of_megabytes_is_cut_too(
    inference: InferenceService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cog sends an exception's text to the client, whoever made it."""

    def fail(*_: object, **__: object) -> None:
        raise ValueError("y" * LONG)

    monkeypatch.setattr(ImageGenerator, "generate", fail)
    seen, printed = Recorder(), io.StringIO()
    with redirect_stderr(printed), pytest.raises(Exception, match="ValueError: yyy") as caught:
        inference.run({"prompt": "a dog"}, **seen.options())
    assert len(str(caught.value)) < LONGEST_MESSAGE
    assert caught.value.__cause__ is None
    assert seen.metrics["error_code"] == "internal_error"
    assert seen.longest < LONGEST_MESSAGE
    assert len(printed.getvalue()) < 10 * LONGEST_MESSAGE


@pytest.mark.attack("long error texts (G2)")
@pytest.mark.parametrize("filling", [",", ")", " ", "(", "[", "/", "%", "a.", "@", ":", ":@", ";", "//u:p@"])
@pytest.mark.parametrize("length", [8000, LONG])
def test_a_link_of_megabytes_is_refused_before_it_is_taken_apart(filling: str, length: int) -> None:
    for start, end in (("https://example.org/", ""), ("", ""), ("[", "](a)"), ("https://", ""))[
        : 4 if length < LONG else 1
    ]:
        started = time.process_time()
        with contextlib.suppress(LinkError):
            resolve(start + filling * (length // len(filling)) + end)
        assert in_time(started)


@pytest.mark.attack("texts, names and counts (G5)")
@pytest.mark.parametrize("count", [1001, 21_000])
def test_thousands_of_links_are_refused_before_the_first_is_fetched(count: int, tmp_path: Path) -> None:
    links = "\n".join(["data:image/png;base64,AAAA"] * count)
    started = time.process_time()
    with TrainingService(Settings()) as service, raises(InputError, code="too_many_links", field="instance_data_urls"):
        service.train(TrainingUpload(None, links), {"task": "object"}, log=lambda line: None)
    assert in_time(started)


@pytest.mark.attack("raw Python errors (G10)")
@pytest.mark.parametrize("text", ["[[" * 5000, "[" * LONG, '{"a":' * 100_000, "9" * 5000, "[" + "9" * 5000 + "]", "["])
def test_endless_brackets_and_digits_are_no_list(text: str) -> None:
    with raises(InputError, field="custom_prompts"):
        TrainConfig.of({"custom_prompts": text})
    if text.startswith("["):
        with raises(LinkError, code="malformed_list"):
            split(text)


@pytest.mark.attack("raw Python errors (G10)")
@pytest.mark.parametrize(("model", "name"), TEXT_INPUTS, ids=lambda value: getattr(value, "__name__", value))
def test_half_a_character_is_refused_by_the_name_of_its_input(model: Any, name: str) -> None:
    with raises(InputError, field=name):
        model.of({name: "a \ud800 {}"})


SURROGATES = {
    "a text as WTF-8": {"a.png": png(1), "a.txt": b"a dog \xed\xa0\x80 on grass\n"},
    "a text as UTF-16": {"a.png": png(1), "a.txt": b"\xff\xfea\0 \0\x00\xd8d\0o\0g\0"},
    "a text as UTF-16, cut": {"a.png": png(1), "a.txt": b"\xff\xfea\0 \0d\0o\0g\0\x00\xd8"},
    "a JSON file": {"a.png": png(1), "a.json": b'{"caption": "a dog \\ud800 on grass"}'},
    "tags of a JSON file": {"a.png": png(1), "a.json": b'{"tags": ["dog", "\\udfff"]}'},
    "a table": {"a.png": png(1), "metadata.jsonl": b'{"file_name": "a.png", "text": "a dog \\ud800"}\n'},
    "a name in a table": {"a.png": png(1), "metadata.jsonl": b'{"file_name": "\\ud800.png", "text": "a dog"}\n'},
    "kohya's table": {"a.png": png(1), "meta_cap.json": b'{"a.png": {"caption": "a dog \\udc00"}}'},
    "a name": {"\udc80.png": png(1), "b.png": png(2)},
}


@pytest.mark.attack("raw Python errors (G10)")
@pytest.mark.parametrize("kind", SURROGATES)
def test_half_a_character_in_captions_and_names_of_an_upload(kind: str, tmp_path: Path) -> None:
    members = SURROGATES[kind]
    (tmp_path / "upload.zip").write_bytes(zipped(_encodable(members)))
    try:
        dataset = load_dataset(tmp_path / "upload.zip", DatasetOptions(resolution=32, task="object"), tmp_path / "job")
    except PicturesError as error:
        str(error).encode()
        return
    captions = [caption for image in dataset.images for caption in image.captions]
    assert captions
    json.dumps([*captions, *dataset.report.lines()], ensure_ascii=False).encode()


def _encodable(members: dict[str, bytes]) -> dict[str, bytes]:
    """Return members under names that a zip can have: a lone byte over 127 is read as a code page's."""
    return {name.encode("utf-8", "surrogateescape").decode("cp437"): data for name, data in members.items()}


@pytest.mark.attack("raw Python errors (G10)")
def test_a_folder_on_this_machine_with_a_name_in_no_encoding_is_read(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    Path(str(tmp_path / "pictures" / "a") + "\udcff.png").write_bytes(png(1))
    dataset = load_dataset(tmp_path / "pictures", DatasetOptions(resolution=32, task="object"), tmp_path / "job")
    json.dumps([dataset.images[0].name, *dataset.report.lines()], ensure_ascii=False).encode()


@pytest.mark.attack("sizes beyond the base (G10)")
@pytest.mark.parametrize(
    "inputs",
    [
        {"width": 2048, "height": 2048, "num_inference_steps": 500, "num_outputs": 8},
        {"width": 2048, "height": 2048, "num_inference_steps": 500},
        {"width": 2048, "height": 16, "num_inference_steps": 500, "num_outputs": 8},
    ],
)
def test_a_drawing_of_hours_is_refused(inference: InferenceService, inputs: dict[str, Any]) -> None:
    inference._generator = ImageGenerator(small_base(), 100_000_000)
    with raises(InputError, code="too_much_work"):
        inference.run({"prompt": "a dog"} | inputs, log=lambda line: None)
