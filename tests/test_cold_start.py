"""The imports of a fresh process on its way to the first picture, and what a server does before it is READY."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lora_service.services.inference_service import InferenceService
from lora_service.services.training_service import TrainingService
from lora_service.settings import Settings
from tests.small_base import small_base

ROOT = Path(__file__).resolve().parents[1]

NOT_FOR_DRAWING = {
    "cv2",
    "datasets",
    "lora_service.dataset",
    "lora_service.training",
    "matplotlib",
    "onnxruntime",
    "pandas",
    "pillow_heif",
    "sklearn",
    "tensorboard",
    "torchvision",
    "wandb",
}
NOT_IN_A_SERVER = {
    "accelerate.commands.launch",
    "boto3",
    "pandas",
    "sklearn",
    "tensorflow",
    "torch._dynamo",
    "torch._dynamo.convert_frame",
    "torch._inductor",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch.distributed.tensor._ops",
    "triton",
}
"""Neither before READY nor by a usual first job; a stand-in of the name is no import."""
NOT_IN_ONE = {"predict": {"peft"}, "train": {"scipy.integrate", "scipy.linalg", "scipy.optimize", "scipy.stats"}}
_SERVE = """
import json, sys
from pathlib import Path

from lora_service.services.inference_service import InferenceService
from lora_service.services.training_service import TrainingService, TrainingUpload
from lora_service.services.worker import Worker


def imported():
    modules = {name: module for name, module in sys.modules.items() if module is not None}
    return {name for name, module in modules.items() if type(module).__name__ != "_DeferredModule"}


def draw(service):
    service.run({"prompt": "a red star", "num_inference_steps": 2}, log=lambda line: None)


def train(service):
    inputs = {"task": "object", "max_train_steps_ti": 2, "max_train_steps_tuning": 2, "samples": 1}
    service.train(TrainingUpload(Path("lora_service/demo/subject.zip"), ""), inputs, log=lambda line: None)


kind, job = (InferenceService, draw) if sys.argv[1] == "predict" else (TrainingService, train)
with kind(worker=Worker()) as service:
    service.warm_up()
    ready = imported()
    job(service)
print(json.dumps({"ready": sorted(ready), "first job": sorted(imported() - ready)}))
"""
_DRAW = """
import json, sys

sys.modules["peft"] = None  # training alone uses it, though diffusers imports it wherever it is installed

from lora_service.services.inference_service import InferenceService

with InferenceService() as service:
    service.warm_up()
    service.run({"prompt": "a red star", "num_inference_steps": 2}, log=lambda line: None)
print(json.dumps(sorted(name for name, module in sys.modules.items() if module is not None)))
"""


def imported(script: str) -> set[str]:
    """The modules that a fresh process says it has at its end."""
    return set(printed(script))


def printed(script: str, *arguments: str) -> Any:
    """The JSON in the last line of a fresh process."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "BASE_MODEL": "embedded"}
    command = [sys.executable, "-c", script, *arguments]
    ended = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def test_a_picture_is_drawn_without_importing_what_drawing_does_not_use() -> None:
    modules = imported(_DRAW)
    assert "torch" in modules
    assert not modules & NOT_FOR_DRAWING


@pytest.mark.parametrize("mode", ["predict", "train"])
def test_a_server_imports_what_its_jobs_use_before_it_is_ready_and_nothing_else(mode: str) -> None:
    modules = printed(_SERVE, mode)
    assert "torch" in modules["ready"]
    assert (NOT_IN_A_SERVER | NOT_IN_ONE[mode]) & {*modules["ready"], *modules["first job"]} == set()
    assert modules["first job"] == []


def test_what_is_said_to_the_compiler_alone_does_not_import_it() -> None:
    script = """
import json, sys
from lora_service.services.deferred_imports import COMPILER, defer_imports

defer_imports(COMPILER)
import torch

def double(x): return 2 * x

torch._dynamo.graph_break()
same = torch.compiler.disable(double) is torch.compiler.disable()(double) is double
before = "torch._dynamo.config" in sys.modules
compiled = torch.compile(double, backend="eager")(torch.ones(2)).tolist()
print(json.dumps([same, before, compiled, "torch._dynamo.config" in sys.modules]))
"""
    assert printed(script) == [True, False, [2.0, 2.0], True]


@pytest.mark.parametrize("module", ["check", "grid", "hosting", "links", "train_and_generate"])
def test_the_command_line_starts_without_torch(module: str) -> None:
    modules = imported(f"import json, sys, lora_service.cli.{module}; print(json.dumps(sorted(sys.modules)))")
    assert not modules & {"torch", "diffusers", "transformers", "huggingface_hub", "scipy"}


def test_the_list_of_commands_imports_neither_pydantic_nor_numpy() -> None:
    script = "import json, sys; from lora_service.cli.main import cli; cli(['--help'], standalone_mode=False)"
    modules = imported(f"{script}; print(json.dumps(sorted(sys.modules)))")
    assert "lora_service.cli.main" in modules
    assert not modules & {"torch", "pydantic", "numpy", "PIL", "requests", "lora_service.settings"}


@pytest.mark.parametrize("warm_up", [False, True])
def test_a_server_draws_before_it_is_ready_only_when_asked_to(warm_up: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_service.generation.generator import ImageGenerator

    drawn: list[object] = []
    generate = ImageGenerator.generate
    monkeypatch.setattr("lora_service.models.loading.load_base", lambda settings: small_base())
    monkeypatch.setattr(ImageGenerator, "generate", lambda self, *inputs: drawn.append(generate(self, *inputs)))
    with InferenceService(Settings(warm_up=warm_up)) as service:
        service.warm_up()
    assert len(drawn) == warm_up


@pytest.mark.parametrize("warm_up", [False, True])
def test_a_training_server_loads_the_base_before_the_first_job_only_when_asked_to(
    warm_up: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[object] = []
    monkeypatch.setattr(
        "lora_service.models.loading.load_base", lambda settings, for_training: loaded.append(settings) or small_base()
    )
    with TrainingService(Settings(warm_up=warm_up)) as service:
        service.warm_up()
        assert len(loaded) == warm_up
        assert service.base is service.base
        assert len(loaded) == 1
