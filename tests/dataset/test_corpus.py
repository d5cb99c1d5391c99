"""Every kind of upload in the corpus comes to what is written beside it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from lora_service.dataset import DatasetOptions, UploadLimits, load_dataset
from lora_service.errors import PicturesError
from tests.dataset.corpus_archives import ARCHIVES
from tests.dataset.corpus_besides import BESIDES
from tests.dataset.corpus_case import Case
from tests.dataset.corpus_hostile import HOSTILE
from tests.dataset.corpus_pictures import PICTURES

CASES = [*ARCHIVES, *HOSTILE, *PICTURES, *BESIDES]
LIMITS = {each.name for each in fields(UploadLimits)}


def options_of(case: Case) -> DatasetOptions:
    limits = UploadLimits(**{key: value for key, value in case.options.items() if key in LIMITS})
    others = {key: value for key, value in case.options.items() if key not in LIMITS}
    return DatasetOptions(resolution=64, limits=limits, **({"task": "object"} | others))


def test_the_corpus_is_large_enough_and_its_titles_differ() -> None:
    assert len({case.title for case in CASES}) == len(CASES) >= 60


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_upload(case: Case, tmp_path: Path) -> None:
    upload, folder = tmp_path / case.file, tmp_path / "job"
    upload.write_bytes(case.data)
    if case.error:
        with pytest.raises(PicturesError) as raised:
            load_dataset(upload, options_of(case), folder)
        sentence = str(raised.value)
        assert case.error in sentence
        assert sentence.endswith(".")
        assert "\n" not in sentence
    else:
        report = load_dataset(upload, options_of(case), folder).report
        assert tuple(picture.name for picture in report.used) == case.used
        assert {file.name for file in report.skipped} == set(case.skipped)
        assert all(case.skipped[file.name] in file.reason for file in report.skipped)
        lines = "\n".join(report.lines())
        assert all(part in lines for part in case.said), lines
    assert sorted(tmp_path.iterdir()) == sorted([upload, folder])
    assert not list(folder.iterdir())
