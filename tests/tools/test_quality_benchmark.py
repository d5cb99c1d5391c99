"""The benchmark of recipes: its methods, its table, and one training from end to end."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from benchmarks.bases import load_named_base
from benchmarks.quality import report
from benchmarks.quality.measuring import Judges
from benchmarks.quality.methods import METHODS, parse
from benchmarks.quality.runs import FLOOR, Bench, Run, Table
from lora_service.models.image_judge import ImageJudge
from lora_service.training.inputs.config import TrainConfig
from tools.judges.judging import TextJudge


def test_a_method_takes_further_inputs_and_steps() -> None:
    assert parse("dreambooth", None) == METHODS["dreambooth"]
    method = parse("lora_rank=4,steps=5+7", None)
    assert (method.inputs, method.steps) == ({"lora_rank": "4"}, (5, 7))
    assert parse("inversion", (1, 2)).steps == (1, 2)
    with pytest.raises(ValueError, match="'fats' is no method; there are full, fast, dreambooth, inversion"):
        parse("fats", None)


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_inputs_are_a_trainings(name: str) -> None:
    TrainConfig.of(dict(METHODS[name].inputs))


def test_the_table_has_means_floor_and_ceiling(tmp_path: Path) -> None:
    results = Table(tmp_path / "quality.csv")
    results.add(Run(FLOOR, "face", 1, 0), [{"is_final": 1, "likeness": -0.25, "trigger_likeness": 0.9}])
    for seed, likeness in ((1, 0.5), (2, 0.7)):
        rows = [{"is_final": 0, "likeness": 0.1, "seconds": 1, "drift": 0.1}]
        results.add(
            Run("full", "face", 1, seed), [*rows, {"is_final": 1, "likeness": likeness, "seconds": 2, "drift": 0.2}]
        )
    assert results.done() == {Run(FLOOR, "face", 1, 0), Run("full", "face", 1, 1), Run("full", "face", 1, 2)}
    lines = list(report.table(results.rows()))
    assert "-0.250 / 0.900" in lines[2]
    assert lines[3].startswith("| face | full | 2 | 0.600 |")
    report.curves(results.rows(), tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > 300


@pytest.mark.slow
def test_a_training_is_measured_on_the_way_and_its_file_at_the_end(tmp_path: Path) -> None:
    base = load_named_base("embedded", for_training=True)
    judges = Judges(base, ImageJudge.load(), TextJudge.load())
    bench, method, run = (
        Bench(base, judges, tmp_path, times=2),
        parse("steps=2+2", None),
        Run("full", "style", 1_000_000, 1),
    )
    middle, end = bench.train(method, run)
    assert (middle["pictures"], end["pictures"]) == (2, 4)
    assert 0 < middle["seconds"] < end["seconds"]
    assert all(-1 <= end[name] <= 1 for name in ("likeness", "half_likeness", "trigger_likeness"))
    assert 0 < end["drift"] < 1
    results = Table(tmp_path / "quality.csv")
    results.add(run, [middle, end])
    report.sheet(results.rows(), tmp_path, "style", tmp_path / "style.png")
    assert (tmp_path / "style.png").exists()
