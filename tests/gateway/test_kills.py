"""A short share of the campaign of kills."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gateway.kills import Report, campaign
from tests.gateway.postgres import programs


@pytest.mark.slow
def test_nothing_is_lost_and_nothing_comes_twice(tmp_path: Path) -> None:
    report = campaign(tmp_path, 5)
    assert report.kills.total() == 5
    assert report.jobs
    assert not report.problems, _account(report, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(programs() is None, reason="Debian's package postgresql is not installed")
def test_the_same_holds_when_the_database_is_killed(tmp_path: Path) -> None:
    report = campaign(tmp_path, 5, seed=2, postgresql=True)
    assert report.kills["PostgreSQL"]
    assert not report.problems, _account(report, tmp_path)


def _account(report: Report, folder: Path) -> str:
    """The report and the gateway's last words, without which a job that never ends explains nothing."""
    log = (folder / "gateway.log").read_text().splitlines()
    return "\n".join([report.text(), *[line for line in log if line[:2] == "20"][-60:]])
