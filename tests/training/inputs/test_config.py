"""Inputs that are taken and refused, and the values of those left open."""

from typing import Any

import pytest

from lora_service.dataset.options import CaptionSource
from lora_service.dataset.report import DatasetReport, UsedImage
from lora_service.errors import InputError
from lora_service.models.families.sd1 import SD15
from lora_service.settings import Settings
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.inputs.input_warnings import warn_of_inputs
from lora_service.training.inputs.resolved_config import resolve_config
from tests.errors import raises


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
    # The number of samples depends on how long they take, the text encoders know their own layer, and no class is kept.
    still_open = {name for name, value in config.model_dump().items() if value is None}
    assert still_open == {"clip_skip", "samples", "preservation_weight", "num_class_images"}


def test_rates_are_used_as_given() -> None:
    asked = TrainConfig.of({"learning_rate_unet": 0.0003, "gradient_accumulation_steps": 4, "learning_rate_text": 0})
    config = resolve_config(asked, SD15, "ohwx", 3).config
    assert (config.learning_rate_unet, config.learning_rate_text) == (0.0003, 0)


@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        ({"trigger": "a\u200bb"}, "trigger"),
        ({"trigger": "\u202eabc"}, "trigger"),
        ({"class_word": "dog\u2066"}, "class_word"),
        ({"trigger": "\ud800"}, "trigger"),
        ({"initializer_tokens": "dog|\u200d"}, "initializer_tokens"),
        ({"placeholder_tokens": "<a\u200b>|<a>"}, "placeholder_tokens"),
    ],
)
def test_a_word_with_characters_that_nobody_sees_is_refused(inputs: dict[str, Any], field: str) -> None:
    with raises(InputError, field=field):
        TrainConfig.of(inputs)


@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        ({"trigger": "<s1>"}, "trigger"),
        ({"trigger": "a <new> b", "placeholder_tokens": "<new>"}, "trigger"),
        ({"trigger": "my {} dog"}, "trigger"),
        ({"trigger": "my <1>"}, "trigger"),
        ({"class_word": "a|b|c"}, "class_word"),
        ({"initializer_tokens": "a|b|c"}, "initializer_tokens"),
        ({"resolution": 16, "aspect_ratio_buckets": True}, "resolution"),
    ],
)
def test_a_mistake_names_the_input_that_was_given(inputs: dict[str, Any], field: str) -> None:
    with raises(InputError, field=field):
        resolve_config(TrainConfig.of(inputs), SD15, "ohwx", 3).config.dataset_options(SD15, Settings())


@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        ({"learning_rate_ti": 0}, "learning_rate_ti"),
        ({"learning_rate_unet": 0, "learning_rate_text": 0}, "learning_rate_unet"),
        ({"caption_dropout": 1}, "caption_dropout"),
    ],
)
def test_a_stage_that_would_teach_nothing_is_refused(inputs: dict[str, Any], field: str) -> None:
    with raises(InputError, field=field, code="teaches_nothing"):
        resolve_config(TrainConfig.of(inputs), SD15, "ohwx", 3)
    no_stages = {"max_train_steps_ti": 0} if field == "learning_rate_ti" else {"max_train_steps_tuning": 0}
    resolve_config(TrainConfig.of(inputs | no_stages), SD15, "ohwx", 3)


def image(source: CaptionSource) -> UsedImage:
    return UsedImage("a.png", (64, 64), (64, 64), (0, 0, 64, 64), ("{}",), source, None, 1, ())


@pytest.mark.parametrize(
    ("inputs", "sources", "words"),
    [
        ({}, ("file", "template"), []),
        ({"custom_prompts": '["{} x"]'}, ("file", "template", "file"), [("custom_prompts", "2 of 3")]),
        ({"custom_prompts": '["{} x"]'}, ("template",), []),
        ({"caption_mode": "filename"}, ("file", "filename"), [("'filename'", "1 of 2")]),
        ({"caption_mode": "files"}, ("file",), []),
        ({"continue_inversion": True, "max_train_steps_ti": 0}, (), [("continue_inversion", "max_train_steps_ti")]),
        ({"continue_inversion": True, "continue_inversion_lr": 0}, (), [("continue_inversion", "0")]),
        ({"continue_inversion": False, "continue_inversion_lr": 1e-3}, (), [("continue_inversion_lr", "false")]),
        ({"trigger": "x", "lora_rank": 4, "max_train_steps_tuning": 0}, (), [("trigger, lora_rank", "tuning is 0")]),
        ({"keep_tokens": 3}, (), [("keep_tokens", "shuffle_tags")]),
        ({"max_train_steps_tuning": 1, "lr_warmup_steps": 1}, (), [("stage 2 has 1 step:", "over 0")]),
        (
            {"max_train_steps_ti": 50, "max_train_steps_tuning": 60, "lr_warmup_steps": 100},
            (),
            [("stage 1", "over 25"), ("stage 2", "over 30")],
        ),
    ],
)
def test_an_input_without_its_effect_is_warned_of(
    inputs: dict[str, Any], sources: tuple[CaptionSource, ...], words: list[tuple[str, str]]
) -> None:
    warnings = warn_of_inputs(TrainConfig.of(inputs), DatasetReport(tuple(map(image, sources))))
    assert len(warnings) == len(words), warnings
    for warning, parts in zip(warnings, words, strict=True):
        assert all(part in warning for part in parts), warning


def test_a_constant_rate_with_a_warm_up_has_one() -> None:
    config = resolve_config(TrainConfig.of({"lr_warmup_steps": 10}), SD15, "ohwx", 3).config
    assert config.lr_scheduler == "constant_with_warmup"


def test_initializers_keep_their_places_and_the_class_word_is_the_first() -> None:
    assert resolve_config(TrainConfig.of({"initializer_tokens": "|dog"}), SD15, "ohwx", 3).initializers == ("", "dog")
    assert resolve_config(TrainConfig.of({"class_word": " big  dog "}), SD15, "ohwx", 3).initializers == ("big dog", "")


def test_what_was_left_open_is_told() -> None:
    asked = TrainConfig.of({"lora_rank": 4, "seed": 9})
    told = resolve_config(asked, SD15, "ohwx", 9).describe_defaults(asked)
    assert "trigger ohwx" in told
    assert "learning_rate_unet 0.0002" in told
    assert "seed" not in told
    assert "lora_rank" not in told


def test_several_subjects_have_tokens_and_first_words_of_their_own() -> None:
    inputs = {"trigger": "zwx dog", "placeholder_tokens": "<s1>|<s2>"}
    resolved = resolve_config(TrainConfig.of(inputs), SD15, "", 3, ["vok cat", "qiv"])
    assert [(each.trigger, each.tokens, each.text) for each in resolved.subjects] == [
        ("zwx dog", ("<s1>", "<s2>"), "<s1><s2>"),
        ("vok cat", ("<s3>", "<s4>"), "<s3><s4>"),
        ("qiv", ("<s5>", "<s6>"), "<s5><s6>"),
    ]
    assert resolved.tokens == ("<s1>", "<s2>", "<s3>", "<s4>", "<s5>", "<s6>")
    assert resolved.initializers == ("dog", "", "cat", "", "", "")
    named = resolve_config(
        TrainConfig.of(inputs | {"placeholder_tokens": "<it>", "class_word": "pet"}), SD15, "", 3, ["vok cat"]
    )
    assert named.tokens == ("<it>", "<it-2>")
    assert named.initializers == ("pet", "pet")
    with raises(InputError, field="placeholder_tokens"):
        resolve_config(TrainConfig.of(inputs | {"placeholder_tokens": "<s1>|<s3>"}), SD15, "", 3, ["vok"])


def test_without_stage_1_the_triggers_alone_call_the_subjects() -> None:
    inputs = {"trigger": "zwx", "max_train_steps_ti": 0}
    resolved = resolve_config(TrainConfig.of(inputs), SD15, "", 3, ["vok"])
    assert [each.text for each in resolved.subjects] == ["zwx", "vok"]
    assert resolved.tokens == resolved.initializers == ()


def test_further_resolutions_are_sides_split_by_commas() -> None:
    config = TrainConfig.of({"more_resolutions": " 768, 512,1024 ", "resolution": 512})
    assert config.resolutions(SD15) == (512, 768, 1024)
    assert TrainConfig.of({}).resolutions(SD15) == (512,)
    for text in ("768x768", "8", "768,", "4096", "-512", "5e2"):
        with raises(InputError, field="more_resolutions"):
            TrainConfig.of({"more_resolutions": text})


@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        ({"lr_warmup_steps": 5, "lr_warmup_ratio": 0.1}, "lr_warmup_ratio"),
        ({"optimizer": "adamw_schedule_free", "lr_scheduler": "cosine"}, "lr_scheduler"),
        ({"optimizer": "adamw_schedule_free", "ema_decay": 0.9}, "ema_decay"),
        ({"optimizer": "prodigy", "lora_plus_ratio": 4}, "lora_plus_ratio"),
    ],
)
def test_inputs_of_the_optimizer_that_do_not_fit_each_other_are_refused(inputs: dict[str, Any], field: str) -> None:
    with raises(InputError, field=field):
        TrainConfig.of(inputs)


def test_prodigy_starts_from_rates_of_1_and_warns_of_tiny_ones() -> None:
    config = resolve_config(TrainConfig.of({"optimizer": "prodigy", "learning_rate_text": 0}), SD15, "ohwx", 3).config
    assert (config.learning_rate_unet, config.learning_rate_ti, config.continue_inversion_lr) == (1.0, 1.0, 1.0)
    assert config.learning_rate_text == 0
    report = DatasetReport(())
    given = TrainConfig.of({"optimizer": "prodigy", "learning_rate_unet": 1e-4, "learning_rate_ti": 0.5})
    assert ["learning_rate_unet" in line for line in warn_of_inputs(given, report)] == [True]


def test_inputs_of_another_schedule_are_warned_of_and_a_share_makes_constant_warm_up() -> None:
    report = DatasetReport(())
    lines = warn_of_inputs(
        TrainConfig.of({"lr_cycles": 2, "lr_power": 3, "clip_by_group": True, "max_grad_norm": 0}), report
    )
    assert [line.split()[1] for line in lines] == ["lr_cycles", "lr_power", "clip_by_group"]
    assert warn_of_inputs(TrainConfig.of({"lr_cycles": 2, "lr_scheduler": "cosine_with_restarts"}), report) == []
    config = resolve_config(TrainConfig.of({"lr_warmup_ratio": 0.1}), SD15, "ohwx", 3).config
    assert config.lr_scheduler == "constant_with_warmup"


def test_fast_has_fewer_steps_of_more_pictures_and_keeps_rates_that_are_given() -> None:
    given = TrainConfig.of({"preset": "fast", "learning_rate_text": 3e-5})
    resolved = resolve_config(given, SD15, "ohwx", 3)
    config = resolved.config
    assert (config.max_train_steps_ti, config.max_train_steps_tuning, config.train_batch_size) == (0, 196, 2)
    assert (config.learning_rate_unet, config.learning_rate_text) == (1.5 * SD15.learning_rate_unet, 3e-5)
    assert (resolved.tokens, resolved.subject_text) == ((), "ohwx")
    larger = {"preset": "fast", "train_batch_size": 4, "max_train_steps_tuning": 1}
    config = resolve_config(TrainConfig.of(larger), SD15, "ohwx", 3).config
    assert (config.train_batch_size, config.max_train_steps_tuning) == (4, 1)


def test_fast_says_what_it_has_no_use_for() -> None:
    lines = warn_of_inputs(TrainConfig.of({"preset": "fast", "learning_rate_ti": 1e-3}), DatasetReport(()))
    assert lines == ["warning: learning_rate_ti has no effect, as preset is fast, which has no stage 1"]
    with raises(InputError, field="preset"):
        resolve_config(TrainConfig.of({"preset": "fast", "max_train_steps_tuning": 0}), SD15, "ohwx", 3)
    with raises(InputError, field="initializer_tokens"):
        resolve_config(TrainConfig.of({"preset": "fast", "initializer_tokens": "dog"}), SD15, "ohwx", 3)
