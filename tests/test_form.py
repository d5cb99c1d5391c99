"""The form's inputs are the config's: names, defaults and limits, which Cog needs spelled out a second time."""

import inspect
from typing import Any, get_args

import pytest
from annotated_types import Ge, Gt, Le, MaxLen
from pydantic import BaseModel

import predict
import train
from lora_service.generation.request import GenerateRequest
from lora_service.generation.schedulers import SCHEDULERS
from lora_service.serving import entries, signature
from lora_service.serving.entries import EntryParameter
from lora_service.training.config import TrainConfig

CASES = [("train", TrainConfig), ("predict", GenerateRequest)]
NOT_CONFIG = {"instance_data", "instance_data_urls", "image", "api_token"}


def parameters(mode: Any) -> dict[str, EntryParameter]:
    inputs = signature.read(entries.find(mode)).parameters
    return {p.name: p for p in inputs if p.name not in NOT_CONFIG}


@pytest.mark.parametrize(("mode", "model"), CASES)
def test_the_form_and_the_config_have_the_same_inputs_in_the_same_order(mode: str, model: type[BaseModel]) -> None:
    assert list(parameters(mode)) == list(model.model_fields)


@pytest.mark.parametrize(("mode", "model"), CASES)
def test_defaults_and_limits_are_the_same(mode: str, model: type[BaseModel]) -> None:
    for name, parameter in parameters(mode).items():
        field = model.model_fields[name]
        assert parameter.default == field.default, name
        limits = {type(limit): limit for limit in field.metadata}
        least = limits[Ge].ge if Ge in limits else None  # type: ignore[attr-defined]
        most = limits[Le].le if Le in limits else None  # type: ignore[attr-defined]
        longest = limits[MaxLen].max_length if MaxLen in limits else None  # type: ignore[attr-defined]
        if Gt not in limits:  # Cog knows no open limit
            assert parameter.notes.get("minimum") == least, name
        assert parameter.notes.get("maximum") == most, name
        assert parameter.notes.get("maxLength") == longest, name
        if parameter.choices and name != "scheduler":
            assert list(parameter.choices) == list(get_args(field.annotation)), name


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
        "image", "prompt_strength", "scheduler", "lora_urls", "lora_scales", "seed",
    }  # fmt: skip
    assert trainers <= set(inspect.signature(train.train).parameters)
    assert drawing <= set(inspect.signature(predict.Predictor.run).parameters)
