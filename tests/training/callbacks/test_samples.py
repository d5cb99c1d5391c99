"""Samples while a training runs: what is drawn, when, at which cost, and where it is seen."""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lora_service.errors import InputError
from lora_service.generation.generator import ImageGenerator
from lora_service.generation.image_grid import GAP
from lora_service.generation.request import GenerateRequest
from lora_service.lora.files import read_lora
from lora_service.lora.scale import Scale
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.image_judge import ImageJudge
from lora_service.training.callbacks.samples import SampleDrawer, SamplePlan, sample_prompts, sample_steps
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.inputs.input_checks import MOST_SAMPLE_PROMPTS, parse_sample_prompts
from lora_service.training.inputs.resolved_config import resolve_config
from lora_service.training.trainer import Trainer, TrainResult
from tests.errors import raises
from tests.small_base import DEFAULTS, hashes, picture_zip, small_base

STEPS = {"task": "object", "seed": 1, "max_train_steps_ti": 2, "max_train_steps_tuning": 2, "resolution": 32}


def train(tmp_path: Path, lines: list[str], base: DiffusionBase | None = None, **inputs: Any) -> TrainResult:
    job = Trainer(base or small_base(), tmp_path / "job", log=lines.append)
    return job.run(picture_zip(tmp_path / "pictures.zip"), TrainConfig.of(STEPS | inputs))


def test_samples_are_spread_over_both_stages_and_shown_in_grids(tmp_path: Path) -> None:
    lines: list[str] = []
    base = small_base()
    before = hashes(base)
    result = train(tmp_path, lines, base, samples=4)
    assert hashes(base) == before
    folder = result.path.parent / "samples"
    times = ["stage-1-step-000001", "stage-1-step-000002", "stage-2-step-000001", "stage-2-step-000002"]
    assert sorted(path.name for path in folder.iterdir()) == ["all.png", "latest.png", *(f"{t}.png" for t in times)]
    last = Image.open(folder / f"{times[-1]}.png")
    one, grid = Image.open(folder / "latest.png"), Image.open(folder / "all.png")
    pictures = one.crop((one.width - last.width + GAP, 0, one.width, one.height))
    assert pictures.tobytes() == last.crop((GAP, 0, last.width, last.height)).tobytes(), "the same beside a label"
    assert grid.width == one.width
    assert grid.height > 3 * 160 + one.height
    labels = ["stage 1, step 1", "stage 1, step 2", "stage 2, step 1", "stage 2, step 2"]
    expected = [f"sample {i} of 4 ({label}): samples/latest.png" for i, label in enumerate(labels, 1)]
    assert [line for line in lines if line.startswith("sample ")] == expected
    assert any(line.startswith("samples: 4 of 3 prompts, about") for line in lines)


def test_the_last_sample_is_what_the_file_draws_and_its_thumbnail(tmp_path: Path) -> None:
    result = train(tmp_path, [], samples=1, sample_prompts="a photo of {}", learning_rate_unet=0.01)
    weights = read_lora(result.path)
    url = weights.metadata["modelspec.thumbnail"]
    assert url.startswith("data:image/jpeg;base64,")
    assert len(url) < 40_000
    thumbnail = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    assert (thumbnail.format, thumbnail.size) == ("JPEG", (256, 256))
    request = GenerateRequest(prompt="a photo of <1>", seed=1)
    drawn = ImageGenerator(small_base()).generate(request, [(weights, Scale(1, 1))])[0].image
    without = ImageGenerator(small_base()).generate(request.model_copy(update={"prompt": "a photo of"}), [])[0].image
    sample = Image.open(result.path.parent / "samples" / "latest.png").crop((150, 6, 310, 166))
    differences = [
        float(np.abs(np.asarray(sample, float) - np.asarray(image.resize((160, 160), Image.Resampling.BICUBIC))).mean())
        for image in (drawn, without)
    ]
    assert differences[0] < 1
    assert differences[1] > 2 * differences[0]


def test_a_training_with_samples_learns_the_same_as_one_without(tmp_path: Path) -> None:
    weights = []
    for number, samples in enumerate((0, 2)):
        (tmp_path / str(number)).mkdir()
        weights.append(read_lora(train(tmp_path / str(number), [], samples=samples).path))
    without, with_samples = weights
    assert "modelspec.thumbnail" not in without.metadata
    assert not (tmp_path / "0" / "job" / "samples").exists()
    for component, path, layer in without:
        other = with_samples.layers[component][path]
        assert torch.equal(layer.down, other.down)  # type: ignore[attr-defined]
        assert torch.equal(layer.up, other.up)  # type: ignore[attr-defined]


def test_the_header_names_seed_and_prompts_but_not_those_of_the_user(tmp_path: Path) -> None:
    report = json.loads(read_lora(train(tmp_path, [], samples=1).path).metadata["lora_service.report"])
    assert report["samples"]["seed"] == 1
    assert report["samples"]["prompts"][0] == "a photo of <1>"
    own = read_lora(train(tmp_path, [], samples=1, sample_prompts="<1> at home\nmy street").path)
    assert json.loads(own.metadata["lora_service.report"])["samples"]["prompts"] == 2
    assert "my street" not in str(own.metadata)


def test_samples_that_would_take_long_are_fewer_unless_their_number_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_service.training.callbacks.sample_callback.LARGEST_SHARE", 0.0)
    lines: list[str] = []
    train(tmp_path, lines)
    assert [line for line in lines if "samples: 2 of 1 prompt, about" in line and "are drawn if samples is 4" in line]
    assert len([line for line in lines if line.startswith("sample ")]) == 2
    lines.clear()
    train(tmp_path, lines, samples=3)
    assert any(line.startswith("samples: 3 of 3 prompts") for line in lines)
    assert len([line for line in lines if line.startswith("sample ")]) == 3


def test_samples_that_cannot_be_drawn_do_not_end_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(SampleDrawer, "draw", fail)
    lines: list[str] = []
    result = train(tmp_path, lines)
    assert result.path.exists()
    assert len([line for line in lines if "no more samples" in line]) == 1


def test_a_judge_tells_the_likeness_of_the_subjects_pictures(tmp_path: Path) -> None:
    lines: list[str] = []
    job = Trainer(small_base(), tmp_path / "job", log=lines.append, judge=CountingJudge())
    job.run(picture_zip(tmp_path / "p.zip"), TrainConfig.of(STEPS | {"samples": 1}))
    assert any(line.endswith("samples/latest.png, likeness 2.03") for line in lines), lines


class CountingJudge(ImageJudge):
    """Says how many pictures it is shown, and, in hundredths, how many of the subject."""

    def __init__(self) -> None:
        pass

    def similarity(self, pictures: Sequence[Image.Image], subject: Sequence[Image.Image]) -> float:
        return len(pictures) + len(subject) / 100


@pytest.mark.parametrize(
    ("pictures", "expected"),
    [(12, (3, 4)), (100, (3, 4)), (11, (2, 4)), (8, (2, 4)), (4, (1, 4)), (3, (1, 3)), (1, (1, 2)), (0, (1, 2))],
)
def test_fewer_prompts_come_before_fewer_times(pictures: int, expected: tuple[int, int]) -> None:
    assert SamplePlan(3, 4).within(pictures) == SamplePlan(*expected)


def test_steps_of_samples() -> None:
    assert sample_steps(0, 1400, 4) == [350, 700, 1050, 1400]
    assert sample_steps(350, 1400, 1) == [1400]
    assert sample_steps(0, 2, 4) == [1, 2]


def test_prompts_by_task_name_the_subject_first_and_one_goes_without() -> None:
    for task in ("face", "object", "style", "location"):
        for class_word in ("", "dog"):
            config = TrainConfig.of({"task": task, "class_word": class_word})
            prompts = sample_prompts(resolve_config(config, DEFAULTS, "zwx", 1))
            assert "{}" in prompts[0]
            assert [("{}" in prompt) for prompt in prompts].count(False) == 1
            assert "{other}" not in str(prompts)


def test_own_prompts_are_lines_or_a_list() -> None:
    assert parse_sample_prompts("a photo of <1>\n\n  the sea ") == ("a photo of {}", "the sea")
    assert parse_sample_prompts('["{} in a hat", "b"]') == ("{} in a hat", "b")
    assert parse_sample_prompts(" ") == ()
    for bad in ('["a', "[1]", "a photo of <2>", "x" * 1001, "a\n" * (MOST_SAMPLE_PROMPTS + 1)):
        with raises(InputError, field="sample_prompts"):
            parse_sample_prompts(bad)
    config = TrainConfig.of({"sample_prompts": "the sea\n<1> at sea"})
    assert sample_prompts(resolve_config(config, DEFAULTS, "zwx", 1)) == ("{} at sea", "the sea")
