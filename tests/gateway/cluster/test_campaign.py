"""A short share of the campaign of a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gateway.cluster.campaign import DISTURBANCES, campaign
from tests.gateway.postgres import programs


@pytest.mark.campaign
@pytest.mark.skipif(programs() is None, reason="Debian's package postgresql is not installed")
def test_whatever_is_killed_every_job_ends_right_and_once(tmp_path: Path) -> None:
    report = campaign(tmp_path, 80, 2, seconds=600)
    assert report.done == list(DISTURBANCES)
    assert report.states == {"succeeded": 82}
    assert not report.problems, report.text()
