"""The judge that the settings name, and the pictures that it finds alike."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
from transformers import CLIPImageProcessorPil, Dinov2Config, Dinov2Model

from lora_service.errors import SettingError
from lora_service.models.image_judge import ImageJudge, likeness_judge
from lora_service.settings import Settings
from tests.errors import raises
from tools.synthetic.subjects import pictures


def test_the_embedded_base_has_a_judge_of_its_own() -> None:
    judge = likeness_judge(Settings(base_model="embedded"))
    assert judge is not None
    same = [picture.image for picture in islice(pictures(1_000_003, 64, "judge", "object"), 4)]
    other = [picture.image for picture in islice(pictures(1_000_004, 64, "judge", "object"), 4)]
    assert judge.similarity(same[:2], same[2:]) > judge.similarity(same[:2], other) + 0.1


@pytest.mark.parametrize(("base", "model"), [("sd15", "auto"), ("embedded", "none")])
def test_there_may_be_none(base: str, model: str) -> None:
    assert likeness_judge(Settings(base_model=base, likeness_model=model)) is None


def test_a_folder_of_another_model_judges_any_base(tmp_path: Path) -> None:
    config = Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    Dinov2Model(config).save_pretrained(tmp_path)
    CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(tmp_path)
    judge = likeness_judge(Settings(base_model="sd15", likeness_model=str(tmp_path)))
    assert isinstance(judge, ImageJudge)
    image = next(pictures(1, 64, "judge", "object")).image
    assert judge.similarity([image], [image]) == pytest.approx(1, abs=1e-4)


def test_what_is_no_model_is_refused_by_the_settings_name(tmp_path: Path) -> None:
    with raises(SettingError, field="LIKENESS_MODEL"):
        likeness_judge(Settings(likeness_model=str(tmp_path)))
