"""The form's inputs are the config's: names, defaults and limits, which Cog needs spelled out a second time."""

import inspect
import re
from typing import Any, get_args

import pytest
from annotated_types import Ge, Le, MaxLen
from click.testing import CliRunner
from pydantic import BaseModel, Field

import predict
import train
from lora_service.generation.request import GenerateRequest
from lora_service.generation.schedulers import SCHEDULERS
from lora_service.models.families.sd1 import SD15
from lora_service.serving import entries, signature
from lora_service.serving.entries import EntryParameter, Mode
from lora_service.serving.form import FRONT, FormInput
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.inputs.resolved_config import TASKS
from tools import write_entries

CASES = [("train", TrainConfig), ("predict", GenerateRequest)]
NOT_CONFIG = {
    "instance_data",
    "instance_data_urls",
    "class_data",
    "image",
    "mask",
    "adapter_condition_image",
    "lora",
    "replicate_weights",
    "api_token",
}


def parameters(mode: Any) -> dict[str, EntryParameter]:
    form = signature.read(entries.find(mode)).parameters
    return {p.name: p for p in form if p.name not in NOT_CONFIG}


@pytest.mark.parametrize(("mode", "model"), CASES)
def test_the_form_and_the_config_have_the_same_inputs_in_the_same_order(mode: str, model: type[BaseModel]) -> None:
    behind = [name for name in model.model_fields if name not in FRONT[mode]]  # type: ignore[index]
    front = [name for name in FRONT[mode] if name not in NOT_CONFIG]  # type: ignore[index]
    assert list(parameters(mode)) == [*front, *behind]


def test_the_form_of_inference_begins_with_the_twelve_inputs_that_most_people_need() -> None:
    names = [p.name for p in signature.read(entries.find("predict")).parameters]
    assert tuple(names[:12]) == FRONT["predict"]
    assert len(FRONT["predict"]) == 12


@pytest.mark.parametrize(("mode", "model"), CASES)
def test_defaults_and_limits_are_the_same(mode: str, model: type[BaseModel]) -> None:
    for name, parameter in parameters(mode).items():
        field = model.model_fields[name]
        assert parameter.default == field.default, name
        limits = {type(limit): limit for limit in field.metadata}
        least = limits[Ge].ge if Ge in limits else None  # type: ignore[attr-defined]
        most = limits[Le].le if Le in limits else None  # type: ignore[attr-defined]
        longest = limits[MaxLen].max_length if MaxLen in limits else None  # type: ignore[attr-defined]
        assert parameter.notes.get("minimum") == least, name
        assert parameter.notes.get("maximum") == most, name
        assert parameter.notes.get("maxLength") == longest, name
        if parameter.choices and name != "scheduler":
            assert list(parameter.choices) == list(get_args(field.annotation)), name
        assert parameter.notes["description"] == field.description, name


@pytest.mark.parametrize("mode", write_entries.MODES)
def test_the_entries_are_as_the_tool_writes_them(mode: Mode) -> None:
    source = entries.find(mode).path.read_text(encoding="utf-8")
    assert write_entries.rewrite(mode, source) == source, "run: python -m tools.write_entries"


def test_the_tool_says_that_the_entries_are_up_to_date() -> None:
    result = CliRunner().invoke(write_entries.main, ["--check"])
    assert (result.exit_code, result.output) == (0, "up to date\n")


@pytest.mark.parametrize("mode", write_entries.MODES)
def test_the_tool_mends_the_inputs_and_keeps_the_rest(mode: Mode) -> None:
    source = entries.find(mode).path.read_text(encoding="utf-8")
    first = next(name for name in parameters(mode))
    edited = source.replace("def setup", "# kept\n    def setup").replace("inputs = ", "x = ")
    stale = edited.replace(f" {first}: str", " old: int", 1).replace("le=4294967295", "le=7")
    written = write_entries.rewrite(mode, stale)
    assert "old: int" in stale
    assert written == edited


@pytest.mark.parametrize(
    ("annotation", "info"),
    [(float, Field(gt=0)), (int, Field(multiple_of=8)), (list[str], Field()), (int | str | None, Field(None))],
)
def test_a_field_that_cog_cannot_read_is_refused(annotation: Any, info: Any) -> None:
    model = type("Config", (BaseModel,), {"__annotations__": {"side": annotation}, "side": info})
    with pytest.raises(TypeError, match="side"):
        FormInput.from_field("side", model.model_fields["side"])


@pytest.mark.parametrize("mode", write_entries.MODES)
def test_an_empty_input_says_in_its_first_words_what_it_becomes(mode: Mode) -> None:
    descriptions = {p.name: p.notes["description"] for p in parameters(mode).values() if p.default is None}
    assert [name for name, text in descriptions.items() if not text.startswith("Empty: ")] == []


def test_what_a_task_makes_of_an_empty_input_is_what_its_description_says() -> None:
    """The descriptions are prose: these are the numbers in them."""
    described = {
        "lora_rank": {"face": 16, "object": 8, "style": 16, "location": 16},
        "caption_dropout": {"face": 0.05, "object": 0.05, "style": 0.1, "location": 0.05},
        "flip": {"face": False, "object": True, "style": True, "location": False},
        "noise_offset": {"face": 0.0, "object": 0.0, "style": 0.03, "location": 0.03},
    }
    for name, by_task in described.items():
        assert {task: getattr(defaults, name) for task, defaults in TASKS.items()} == by_task, name


@pytest.mark.parametrize("mode", write_entries.MODES)
def test_the_numbers_for_sd15_in_the_descriptions_are_those_of_its_defaults(mode: Mode) -> None:
    sides = {"width": SD15.resolution, "height": SD15.resolution}
    numbers = {
        name: match[1]
        for name, parameter in parameters(mode).items()
        if (match := re.search(r"\(SD 1\.5: (.+?)\)", str(parameter.notes["description"])))
    }
    assert len(numbers) == {"train": 6, "predict": 4}[mode]
    for name, number in numbers.items():
        default = sides[name] if name in sides else getattr(SD15, name)
        assert (False if number == "no" else float(number)) == default, name


def test_the_schedulers_of_the_form_are_those_that_there_are() -> None:
    assert list(parameters("predict")["scheduler"].choices or ()) == list(SCHEDULERS)


def test_every_input_of_the_predecessors_is_there() -> None:
    trainers = {
        "instance_data", "instance_data_urls", "custom_prompts", "task", "resolution", "max_train_steps_ti",
        "max_train_steps_tuning", "learning_rate_ti", "learning_rate_text", "learning_rate_unet", "lr_scheduler",
        "lora_rank", "seed",
    }  # fmt: skip
    drawing = {
        "prompt", "negative_prompt", "width", "height", "num_outputs", "num_inference_steps", "guidance_scale",
        "image", "prompt_strength", "scheduler", "lora_urls", "lora_scales", "seed", "adapter_condition_image",
        "adapter_type",
    }  # fmt: skip
    assert trainers <= set(inspect.signature(train.train).parameters)
    assert drawing <= set(inspect.signature(predict.Predictor.run).parameters)
