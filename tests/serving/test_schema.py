"""The OpenAPI document is that of Cog's build; the expected parts are written out as `cog build` 0.23 writes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_service.errors import EntryError
from lora_service.serving import schema, signature
from lora_service.serving.entries import EntryPoint
from lora_service.serving.server import server_document
from tests.errors import raises

PREDICT = """
from cog import BaseRunner, Input, Path, Secret
from typing import Optional

class Predictor(BaseRunner):
    def run(
        self,
        prompt: str,
        width: int = Input(default=512, ge=64, le=1024.0, description="Width."),
        scheduler: str = Input(default="DDIM", choices=["DDIM", "PNDM"], description="Sampler."),
        steps: Optional[int] = Input(default=None, choices=[1, 2]),
        image: Optional[Path] = Input(default=None),
        masks: list[Path] = Input(default=[]),
        api_token: Optional[Secret] = Input(default=None),
        either: str | int = 1,
        late: Optional[float] = Input(ge=0),
    ) -> list[Path]: ...
"""
TRAIN = """
from cog import Input, Path

def train(data: Path, mode: str = Input(default="a", choices=["a"])) -> Path: ...
"""


@pytest.fixture
def home(tmp_path) -> Path:
    (tmp_path / "predict.py").write_text(PREDICT)
    (tmp_path / "train.py").write_text(TRAIN)
    return tmp_path


def test_inputs_are_written_as_the_build_writes_them(home) -> None:
    schemas = server_document("predict", home)["components"]["schemas"]
    uri = {"type": "string", "format": "uri"}
    assert schemas["Input"] == {
        "title": "Input",
        "type": "object",
        "required": ["prompt"],
        "properties": {
            "prompt": {"x-order": 0, "title": "Prompt", "type": "string"},
            "width": {
                "x-order": 1,
                "title": "Width",
                "type": "integer",
                "default": 512,
                "minimum": 64,
                "maximum": 1024,
                "description": "Width.",
            },
            "scheduler": {
                "x-order": 2,
                "allOf": [{"$ref": "#/components/schemas/scheduler"}],
                "default": "DDIM",
                "description": "Sampler.",
            },
            "steps": {
                "x-order": 3,
                "allOf": [{"$ref": "#/components/schemas/steps"}],
                "default": None,
                "nullable": True,
            },
            "image": {"x-order": 4, "title": "Image", "default": None, "nullable": True} | uri,
            "masks": {"x-order": 5, "title": "Masks", "type": "array", "items": uri, "default": []},
            "api_token": {
                "x-order": 6,
                "title": "Api Token",
                "type": "string",
                "format": "password",
                "writeOnly": True,
                "x-cog-secret": True,
                "default": None,
                "nullable": True,
            },
            "either": {
                "x-order": 7,
                "title": "Either",
                "anyOf": [{"type": "string"}, {"type": "integer"}],
                "default": 1,
            },
            "late": {"x-order": 8, "title": "Late", "type": "number", "minimum": 0, "nullable": True},
        },
    }
    enumeration = {"description": "An enumeration."}
    assert schemas["scheduler"] == {"title": "scheduler", "enum": ["DDIM", "PNDM"], "type": "string"} | enumeration
    assert schemas["steps"] == {"title": "steps", "enum": [1, 2], "type": "integer"} | enumeration
    assert schemas["Output"] == {"title": "Output", "type": "array", "items": uri}


def test_a_prediction_server_has_no_trainings(home) -> None:
    document = server_document("predict", home)
    assert document["openapi"] == "3.0.2"
    assert document["info"]["title"] == "Cog"
    assert list(document["paths"]) == ["/", "/health-check", "/predictions", "/predictions/{prediction_id}/cancel"]
    assert not [name for name in document["components"]["schemas"] if name.startswith("Training")]


def test_a_training_server_takes_the_same_inputs_in_both_ways(home) -> None:
    document = server_document("train", home)
    schemas = document["components"]["schemas"]
    assert schemas["TrainingInput"]["title"] == "TrainingInput"
    assert schemas["TrainingInput"]["properties"] == schemas["Input"]["properties"]
    assert schemas["TrainingInput"]["required"] == ["data"]
    assert schemas["TrainingOutput"] == {"title": "Output", "type": "string", "format": "uri"}
    assert set(document["paths"]) >= {"/trainings", "/trainings/{training_id}/cancel", "/predictions"}


@pytest.mark.parametrize("mode", ["predict", "train"])
def test_every_reference_leads_somewhere(home, mode) -> None:
    document = server_document(mode, home)
    text = json.dumps(document)
    references = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert references <= document["components"]["schemas"].keys()
    assert "HTTPValidationError" in references


def test_requests_and_answers_are_described(home) -> None:
    document = server_document("train", home)
    schemas = document["components"]["schemas"]
    assert schemas["TrainingRequest"]["properties"]["input"] == {"$ref": "#/components/schemas/TrainingInput"}
    answer = schemas["PredictionResponse"]["properties"]
    times = {"created_at", "started_at", "completed_at"}
    assert set(answer) == {"input", "output", "id", "version", "status", "error", "logs", "metrics"} | times
    assert answer["created_at"] == {"title": "Created At", "type": "string", "format": "date-time"}
    assert schemas["Status"]["enum"] == ["starting", "processing", "succeeded", "canceled", "failed"]
    post = document["paths"]["/trainings"]["post"]
    assert post["operationId"] == "train_trainings_post"
    assert set(post["responses"]) == {"200", "422"}


def test_an_image_with_both_entries_keeps_each_ones_inputs(home) -> None:
    run, train = (
        signature.read(EntryPoint(home / file, name))
        for file, name in (("predict.py", "Predictor"), ("train.py", "train"))
    )
    schemas = schema.openapi(run=run, train=train)["components"]["schemas"]
    assert "prompt" in schemas["Input"]["properties"]
    assert "data" in schemas["TrainingInput"]["properties"]
    assert schemas["mode"]["enum"] == ["a"]
    assert schemas["scheduler"]["enum"] == ["DDIM", "PNDM"]


def test_an_image_whose_choices_clash_is_refused(home) -> None:
    path = home / "train.py"
    path.write_text(TRAIN.replace("mode", "scheduler"))
    run, train = signature.read(EntryPoint(home / "predict.py", "Predictor")), signature.read(EntryPoint(path, "train"))
    with raises(EntryError, code="conflicting_choices", field="scheduler"):
        schema.openapi(run=run, train=train)


def test_the_document_is_written_where_the_server_looks(home, tmp_path) -> None:
    document = server_document("train", home)
    path = schema.write(document, tmp_path / "work")
    assert path == tmp_path / "work" / ".cog" / "openapi_schema.json"
    assert json.loads(path.read_text()) == document
