"""The progress of a training on a terminal."""

from __future__ import annotations

import os
import sys

import pytest

from lora_service.cli.train_and_generate import _training_output
from lora_service.training.callbacks.training_progress import TrainingProgress


def progress(stage: str, step: int) -> TrainingProgress:
    return TrainingProgress(stage, step, 10, 0.5, 2.0, 90)


def test_a_terminal_shows_one_line_for_each_stage(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with _training_output() as (log, on_progress):
        assert on_progress is not None
        for stage in ("stage 1", "stage 2"):
            for step in range(1, 11):
                on_progress(progress(stage, step))
        log("a line")
    shown = capsys.readouterr()
    assert "a line" in shown.out.splitlines()
    assert "stage 2: 10/10" in shown.err
    assert "loss 0.5000, 2.0 pictures/s, 2 min left in all" in shown.err
    assert shown.err.count("\n") == 2


def test_a_log_file_has_plain_lines() -> None:
    assert not os.isatty(2) or not sys.stderr.isatty()
    with _training_output() as (_, on_progress):
        assert on_progress is None
