"""LoRAs stay where they are patched, and nobody waits for ever for it."""

from __future__ import annotations

import pytest

from lora_service.gateway.engine.jobs import WaitingJob
from lora_service.gateway.engine.ray.affinity import LoraMemory, Matcher


def jobs(*loras: str, priority: int = 0) -> list[WaitingJob]:
    return [WaitingJob(f"{number}-{name}", name, priority) for number, name in enumerate(loras)]


def memory(*loras: str) -> LoraMemory:
    found = LoraMemory()
    for moment, name in enumerate(loras, start=1):
        found.note(name, moment)
    return found


@pytest.mark.parametrize(
    ("waiting", "free", "expected"),
    [
        (["a"], [[]], (0, 0)),
        (["a"], [["b"], ["a"]], (0, 1)),
        (["a"], [["b"], ["a", "c"]], (0, 1)),  # in memory, if not patched
        (["a"], [["a", "b"], ["a"]], (0, 1)),  # patched goes before in memory
        (["a", "b"], [["b"]], (1, 0)),
        (["a", "b"], [["a", "b"]], (0, 0)),  # the first one's is in memory: it need not wait
        (["a", "b", "c"], [["c"], ["b"]], (1, 1)),
        (["", "a"], [["a"]], (1, 0)),
        (["a", "b"], [["b"], []], (1, 0)),
        (["c", "a"], [["a"], ["d"]], (1, 0)),
        (["c"], [["d"], []], (0, 1)),  # one that has drawn nothing, before one that has
    ],
)
def test_a_job_goes_where_its_loras_are(waiting: list[str], free: list[list[str]], expected: tuple[int, int]) -> None:
    assert Matcher(4).choose(jobs(*waiting), [memory(*each) for each in free]) == expected


def test_a_worker_whose_loras_others_await_is_left_for_them() -> None:
    # Nobody has what the first one needs, and it may not be passed over.
    assert Matcher(0).choose(jobs("x", "a"), [memory("a"), memory("b")]) == (0, 1)


def test_the_first_job_is_passed_over_a_few_times_at_most() -> None:
    matcher, waiting = Matcher(3), jobs("x", *["a"] * 10)
    order = []
    while waiting:
        number, _ = matcher.choose(waiting, [memory("a")])
        order.append(waiting.pop(number).loras)
    assert order == ["a", "a", "a", "x", *["a"] * 7]


def test_without_passes_the_order_is_kept() -> None:
    matcher, waiting = Matcher(0), jobs("x", "a", "y", "a")
    assert [waiting.pop(matcher.choose(waiting, [memory("a")])[0]).loras for _ in range(4)] == ["x", "a", "y", "a"]


def test_a_higher_priority_is_never_passed_over_by_a_lower_one() -> None:
    waiting = [*jobs("x", priority=5), *jobs("a")]
    assert Matcher(4).choose(waiting, [memory("a")]) == (0, 0)


def test_a_server_is_taken_to_hold_its_last_loras_and_not_all() -> None:
    found = memory(*(str(number) for number in range(20)))
    assert [found.fits(name) for name in ("19", "15", "0")] == [2, 1, 0]
    found.forget()
    assert found.fits("19") == 0
