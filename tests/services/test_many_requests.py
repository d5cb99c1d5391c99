"""A hundred mixed requests, refused and cancelled ones between: none is wrong, and nothing stays behind."""

from pathlib import Path

from benchmarks.request_memory import campaign, resident


def test_mixed_requests_leave_pictures_memory_and_base_as_they_are(tmp_path: Path) -> None:
    with campaign(tmp_path) as (run, requests):
        before = run.digest()
        memory = 0.0
        for number in range(1, 101):
            run.ask(next(requests))
            if number == 60:
                memory = resident()
        assert run.wrong == []
        assert run.outcomes["repeated"] == 25
        assert run.outcomes["cancelled"] > 0
        assert resident() - memory < 64  # MiB
        assert run.digest() == before
