"""Which of the waiting jobs suits which of the free workers: LoRAs stay where they are patched."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from lora_service.gateway.engine.jobs import WaitingJob

_REMEMBERED = 8  # sets of LoRAs that a server is taken to have in memory


@dataclass
class LoraMemory:
    """What a worker's server has drawn with, the newest last.

    Attributes:
        used: the moment of its last job, to prefer workers that are of no use to others.
    """

    used: float = 0.0
    _recent: OrderedDict[str, None] = field(default_factory=OrderedDict)

    def note(self, loras: str, now: float) -> None:
        """Take note of a job."""
        self.used = now
        self._recent.pop(loras, None)
        self._recent[loras] = None
        while len(self._recent) > _REMEMBERED:
            self._recent.popitem(last=False)

    def forget(self) -> None:
        """Take note of a new server."""
        self._recent.clear()

    @property
    def patched(self) -> str | None:
        """The LoRAs that the base is patched with; None for a server that has drawn nothing yet."""
        return next(reversed(self._recent), None)

    def fits(self, loras: str) -> int:
        """Return 2 if the base is patched with these already, 1 if they are in memory, else 0."""
        return 2 if self.patched == loras else int(loras in self._recent)


class Matcher:
    """Chooses pairs of a waiting job and a free worker.

    Args:
        passes: how often the first job may be passed over by one that suits a free worker better.
    """

    def __init__(self, passes: int) -> None:
        self._passes = passes
        self._passed: dict[str, int] = {}

    def choose(self, waiting: Sequence[WaitingJob], free: Sequence[LoraMemory]) -> tuple[int, int]:
        """Return the numbers of the job and the worker.

        Jobs come in their order, unless a later one of the same priority draws with what a free worker is patched
        with, and the first one with nothing that any has.
        """
        first = waiting[0]
        may_pass = self._passed.get(first.id, 0) < self._passes
        candidates = [job for job in waiting if job.priority == first.priority] if may_pass else [first]
        number = next((n for n, job in enumerate(candidates) if any(memory.fits(job.loras) == 2 for memory in free)), 0)
        if number and any(memory.fits(first.loras) for memory in free):
            number = 0  # what it needs is in memory: nothing is saved by letting it wait
        job = candidates[number]
        count = self._passed.get(first.id, 0) + bool(number)
        self._passed = {first.id: count} if number else {}
        awaited = {each.loras for each in waiting}
        worker = max(range(len(free)), key=lambda n: _suits(free[n], job.loras, awaited))
        return number, worker


def _suits(memory: LoraMemory, loras: str, awaited: set[str]) -> tuple[int, bool, float]:
    return memory.fits(loras), memory.patched not in awaited, -memory.used
