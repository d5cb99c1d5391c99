"""A config's fields as options."""

from __future__ import annotations

from typing import Any

import click
import pytest
from click.testing import CliRunner

from lora_service.cli.field_options import Config, ConfigCommand, config_options
from lora_service.cli.train_and_generate import generate_command, train_command
from lora_service.errors import InputError
from lora_service.generation.request import GenerateRequest
from lora_service.training.inputs.config import TrainConfig
from tests.errors import raises

FIRST_TEN = [
    "task", "trigger", "class_word", "seed", "resolution", "max_train_steps_ti", "max_train_steps_tuning",
    "learning_rate_unet", "lora_rank", "caption_mode",
]  # fmt: skip


def parse(*arguments: str, config: Config = TrainConfig) -> dict[str, Any]:
    """Return the options that were given, as the command receives them; ZIP stands in the key ``zip``."""
    received: dict[str, Any] = {}

    @click.command(cls=ConfigCommand)
    @click.argument("zip", required=False)
    @config_options(config)
    def command(**options: Any) -> None:
        received.update({name: value for name, value in options.items() if value is not None})

    command.main(list(arguments), standalone_mode=False)
    return received


@pytest.mark.parametrize(
    ("arguments", "received"),
    [
        ([], {}),
        (["--lora-rank", "3"], {"lora_rank": 3}),
        (["--lora_rank=3"], {"lora_rank": 3}),
        (["--learning_rate_unet", "1e-4"], {"learning_rate_unet": 1e-4}),
        (["--task", "style"], {"task": "style"}),
        (["--flip"], {"flip": True}),
        (["--no-flip"], {"flip": False}),
        (["--flip", "true"], {"flip": True}),
        (["--flip", "False"], {"flip": False}),
        (["--flip=1"], {"flip": True}),
        (["--flip", "0", "dog.zip"], {"flip": False, "zip": "dog.zip"}),
        (["--flip", "dog.zip"], {"flip": True, "zip": "dog.zip"}),
        (["--shuffle-tags", "no", "--no-color_jitter"], {"shuffle_tags": False, "color_jitter": False}),
        (["--shuffle_tags", "--keep_tokens", "0"], {"shuffle_tags": True, "keep_tokens": 0}),
        (["--no-aspect-ratio-buckets"], {"aspect_ratio_buckets": False}),
    ],
)
def test_values_arrive_in_the_type_of_their_field(arguments: list[str], received: dict[str, Any]) -> None:
    assert parse(*arguments) == received


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lora_rank", "0"),
        ("lora_rank", "129"),
        ("lora_rank", "many"),
        ("caption_dropout", "1.5"),
        ("noise_offset", "nan"),
        ("task", "dog"),
        ("flip", "perhaps"),
        ("trigger", "a" * 61),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_field(option: str, value: str) -> None:
    with raises(InputError, field=option) as caught:
        parse(f"--{option}={value}")
    assert caught.value.value == value


def test_a_scheduler_is_one_of_the_names_that_clients_know() -> None:
    assert parse("--scheduler", "K_EULER", config=GenerateRequest) == {"scheduler": "K_EULER"}
    with raises(InputError, field="scheduler"):
        parse("--scheduler", "Foo", config=GenerateRequest)


@pytest.mark.parametrize("config", [TrainConfig, GenerateRequest])
def test_every_field_is_in_one_group(config: Config) -> None:
    assert sorted(name for group in config.GROUPS.values() for name in group) == sorted(config.model_fields)


def test_the_help_begins_with_the_ten_inputs_that_matter() -> None:
    assert list(TrainConfig.GROUPS["Main"]) == FIRST_TEN
    lines = CliRunner().invoke(train_command, ["--help"]).output.splitlines()
    options = [line.split()[0] for line in lines if line.startswith("  --")]
    assert options[:11] == ["--instance_data_urls", *(f"--{name}" for name in FIRST_TEN)]
    headings = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert headings == [f"{group}:" for group in (*TrainConfig.GROUPS, "Other options")]


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (train_command, "--task [face|object|style|location]"),
        (train_command, "--shuffle_tags / --no-shuffle_tags"),
        (train_command, "[1 to 128; default: 8 for objects, else 16]"),
        (train_command, "[default: <s1>|<s2>]"),
        (train_command, "[default: a new name, like dog-zumvek.safetensors]"),
        (generate_command, "[1 to 8; default: 1]"),
        (generate_command, "[16 to 8192; default: the base model's own (SD 1.5: 512)]"),
        (generate_command, "|DPMSolverMultistepKarras|"),
    ],
)
def test_the_help_shows_choices_limits_and_defaults(command: click.Command, shown: str) -> None:
    output = CliRunner().invoke(command, ["--help"]).output
    assert shown in " ".join(output.split())


def test_an_option_that_is_not_given_leaves_the_choice_to_task_and_base() -> None:
    assert TrainConfig.of(parse("--task", "style")) == TrainConfig(task="style")
