"""Options of a dataset: values out of range, limits from settings, custom prompts."""

from __future__ import annotations

import pytest

from lora_service.dataset.options import DatasetOptions, UploadLimits, parse_captions, parse_prompts
from lora_service.errors import InputError
from lora_service.settings import Settings
from tests.errors import raises


@pytest.mark.parametrize("text", ["[]", "null", '{"a.png": 1}', '{"a.png": []}', '{"a.png": [null]}', "{", "[" * 9999])
def test_captions_that_are_no_object_of_texts_are_refused(text: str) -> None:
    with raises(InputError, field="captions"):
        parse_captions(text)


def test_captions_are_lists_of_lines() -> None:
    assert parse_captions('{"a.png": "TOK\\n at sea", "b/c.png": ["", "TOK"]}') == {
        "a.png": ("TOK at sea",),
        "b/c.png": ("", "TOK"),
    }
    assert parse_captions(" ") == parse_captions("{}") == {}


def test_limits_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_ZIP_BYTES", "5000")
    monkeypatch.setenv("MAX_PICTURES", "7")
    limits = UploadLimits.from_settings(Settings.from_environment())
    assert (limits.max_zip_bytes, limits.max_pictures) == (5000, 7)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"resolution": 100}, "resolution"),
        ({"resolution": 8}, "resolution"),
        ({"resolution": 64, "bucket_step": 12}, "bucket_step"),
        ({"resolution": 32, "aspect_ratio_buckets": True}, "resolution"),
        ({"resolution": 64, "task": "dog"}, "task"),
        ({"resolution": 64, "mask_mode": "x"}, "mask_mode"),
        ({"resolution": 64, "caption_mode": "x"}, "caption_mode"),
        ({"resolution": 64, "custom_prompts": ("a dog",)}, "custom_prompts"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], field: str) -> None:
    with raises(InputError, field=field):
        DatasetOptions(**options)  # type: ignore[arg-type]


def test_custom_prompts_are_a_json_list_of_templates() -> None:
    assert parse_prompts(" ") == ()
    assert parse_prompts('["a photo of {}", "{} at sea"]') == ("a photo of {}", "{} at sea")


@pytest.mark.parametrize("text", ["a photo of {}", "[]", "[1]", '["a photo"]', '["{} and {}"]', "{}"])
def test_other_custom_prompts_are_refused(text: str) -> None:
    with raises(InputError, field="custom_prompts"):
        parse_prompts(text)
