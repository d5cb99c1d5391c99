"""The campaign of attacks, as a table of what was tried, held and failed: ``python -m tests.attacks [WORDS]``.

An attack is any test with the mark ``attack``, which names its kind; those that take seconds run with the other tests
too, those that take minutes (``campaign``) in this command alone. WORDS are passed to pytest: ``-k pictures`` tries
one kind.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import dataclass, field

import pytest

KIND = "kind of attack"


@dataclass
class Tally:
    """Outcomes of the attacks of one kind."""

    held: int = 0
    failed: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


class Campaign:
    """A pytest plugin that counts the outcomes by kind of attack."""

    def __init__(self) -> None:
        self.tallies: defaultdict[str, Tally] = defaultdict(Tally)
        self.unclear: list[str] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            if mark := item.get_closest_marker("attack"):
                item.user_properties.append((KIND, (mark.args[0], mark.kwargs.get("count", 1))))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        kind, count = dict(report.user_properties)[KIND]
        tally = self.tallies[kind]
        tally.seconds += report.duration
        if report.failed:
            tally.failed += count
            tally.failures.append(report.nodeid)
        elif report.skipped:
            self.unclear.append(report.nodeid)
        elif report.when == "call":
            tally.held += count

    def table(self) -> str:
        """Return the table and the names of what failed."""
        lines = [f"{'attacks':<42} {'tried':>6} {'held':>6} {'failed':>6} {'seconds':>8}"]
        tallies = sorted(self.tallies.items())
        total = Tally(*(sum(getattr(tally, name) for _, tally in tallies) for name in ("held", "failed", "seconds")))
        for kind, tally in [*tallies, ("all", total)]:
            tried = tally.held + tally.failed
            lines.append(f"{kind:<42} {tried:>6} {tally.held:>6} {tally.failed:>6} {tally.seconds:>8.0f}")
        lines += [f"failed: {name}" for _, tally in tallies for name in tally.failures]
        return "\n".join([*lines, *(f"not tried: {name}" for name in self.unclear)])


def main(arguments: list[str]) -> int:
    """Run the campaign; return 1 if an attack did not hold."""
    campaign = Campaign()
    status = pytest.main(["-m", "attack", "-q", "--no-header", *(arguments or ["tests"])], plugins=[campaign])
    print(campaign.table())
    return int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
