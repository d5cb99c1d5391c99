"""What a user may ask, what is refused, and what open inputs become."""

from typing import Any

import pytest

from lora_service.errors import InputError
from lora_service.models.registry import SD15
from lora_service.training.config import TrainConfig, resolve_config


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"max_train_steps_ti": -1}, "max_train_steps_ti is -1, but it must be at least 0."),
        ({"lora_rank": 0}, "lora_rank is 0, but it must be at least 1."),
        ({"lora_rank": "many"}, "lora_rank is 'many', but it must be"),
        ({"task": "dog"}, "task is 'dog', but it must be one of 'face', 'object', 'style' or 'location'."),
        ({"learning_rate_unet": 2}, "learning_rate_unet is 2, but it must be at most 1."),
        (
            {"max_train_steps_ti": 0, "max_train_steps_tuning": 0},
            "max_train_steps_tuning is 0, but it must be 1 or more",
        ),
        ({"placeholder_tokens": "s1"}, "placeholder_tokens is 's1', but it must be different names in angle brackets"),
        ({"placeholder_tokens": "<a>|<a>"}, "placeholder_tokens is '<a>|<a>'"),
        ({"custom_prompts": "a photo"}, "custom_prompts is 'a photo'"),
        ({"trigger": "x" * 61}, "trigger is 'xxx"),
        ({"no_such_input": 1}, "no_such_input is 1, but it must be left out"),
    ],
)
def test_bad_inputs_are_named_with_their_value_and_what_would_work(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as raised:
        TrainConfig.of(inputs)
    assert str(raised.value).startswith(message)


def test_whole_numbers_may_come_as_floats_and_texts() -> None:
    config = TrainConfig.of({"resolution": 512.0, "lora_rank": "8", "flip": "true"})
    assert (config.resolution, config.lora_rank, config.flip) == (512, 8, True)


@pytest.mark.parametrize(("task", "rank"), [("face", 16), ("object", 8), ("style", 16), ("location", 16)])
def test_open_inputs_become_what_task_and_base_want(task: str, rank: int) -> None:
    config = resolve_config(TrainConfig.of({"task": task}), SD15, "ohwx", 3).config
    assert (config.lora_rank, config.lora_alpha) == (rank, float(rank))
    assert (config.learning_rate_ti, config.learning_rate_text, config.learning_rate_unet) == (5e-4, 1e-5, 2e-4)
    assert (config.resolution, config.seed, config.trigger) == (512, 3, "ohwx")
    assert None not in config.model_dump().values()


def test_rates_are_used_as_given() -> None:
    asked = TrainConfig.of({"learning_rate_unet": 0.0003, "gradient_accumulation_steps": 4, "learning_rate_ti": 0})
    config = resolve_config(asked, SD15, "ohwx", 3).config
    assert (config.learning_rate_unet, config.learning_rate_ti) == (0.0003, 0)


def test_a_constant_rate_with_a_warm_up_has_one() -> None:
    config = resolve_config(TrainConfig.of({"lr_warmup_steps": 10}), SD15, "ohwx", 3).config
    assert config.lr_scheduler == "constant_with_warmup"


def test_initializers_keep_their_places_and_the_class_word_is_the_first() -> None:
    assert resolve_config(TrainConfig.of({"initializer_tokens": "|dog"}), SD15, "ohwx", 3).initializers == ("", "dog")
    assert resolve_config(TrainConfig.of({"class_word": " big  dog "}), SD15, "ohwx", 3).initializers == ("big dog",)


def test_what_was_left_open_is_told() -> None:
    asked = TrainConfig.of({"lora_rank": 4, "seed": 9})
    told = resolve_config(asked, SD15, "ohwx", 9).describe_defaults(asked)
    assert "trigger ohwx" in told
    assert "learning_rate_unet 0.0002" in told
    assert "seed" not in told
    assert "lora_rank" not in told
