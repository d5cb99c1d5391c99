"""Every upload of the corpus has the outcome written beside it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from lora_service.dataset.load import load_dataset
from lora_service.dataset.options import DatasetOptions, UploadLimits
from lora_service.errors import PicturesError
from tests.dataset.corpus_archives import ARCHIVES
from tests.dataset.corpus_besides import BESIDES
from tests.dataset.corpus_case import Case
from tests.dataset.corpus_hostile import HOSTILE
from tests.dataset.corpus_pictures import PICTURES
from tests.errors import raises

CASES = [*ARCHIVES, *HOSTILE, *PICTURES, *BESIDES]
LIMITS = {each.name for each in fields(UploadLimits)}


def options_of(case: Case) -> DatasetOptions:
    limits = UploadLimits(**{key: value for key, value in case.options.items() if key in LIMITS})
    others = {key: value for key, value in case.options.items() if key not in LIMITS}
    return DatasetOptions(resolution=64, limits=limits, **({"task": "object"} | others))


def test_the_corpus_is_large_enough_and_its_titles_differ() -> None:
    assert len({case.title for case in CASES}) == len(CASES) >= 60


def parameters(case: Case) -> ParameterSet:
    marks = [pytest.mark.attack("hostile archives")] if case in HOSTILE else []
    return pytest.param(case, id=case.title, marks=marks)


@pytest.mark.parametrize("case", map(parameters, CASES))
def test_upload(case: Case, tmp_path: Path) -> None:
    upload, folder = tmp_path / case.file, tmp_path / "job"
    upload.write_bytes(case.data)
    if case.error:
        with raises(PicturesError, code=case.error) as raised:
            load_dataset(upload, options_of(case), folder)
        assert case.quoted in str(raised.value)
        assert str(raised.value).endswith(".")
    else:
        report = load_dataset(upload, options_of(case), folder).report
        assert tuple(image.name for image in report.used) == case.used
        assert {file.name: file.code for file in report.skipped} == case.skipped
        lines = "\n".join(report.lines())
        assert all(part in lines for part in case.report), lines
    assert sorted(tmp_path.iterdir()) == sorted([upload, folder])
    assert not list(folder.iterdir())
