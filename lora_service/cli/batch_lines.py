"""The lines of ``lora-service batch``: what is to be done, and what became of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lora_service.errors import InputError

_SHOWN = 20  # bad lines that are named
FINAL = ("succeeded", "failed", "canceled")


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    input: dict[str, Any] = Field(default_factory=dict)
    model: str = Field(default="", pattern=r"^([\w.-]+/[\w.-]+(:\w+)?)?$")
    destination: str = Field(default="", pattern=r"^([A-Za-z0-9][\w.-]{0,62}/[A-Za-z0-9][\w.-]{0,62})?$")
    priority: int = Field(default=0, ge=-10, le=10)


@dataclass(frozen=True)
class BatchJob:
    """A line of the file of jobs.

    Attributes:
        number: of the line, from 1.
        digest: the same for lines that say the same.
        model: owner/name, with or without a version.
        destination: of a training; empty for a prediction.
        files: the inputs that are files of this machine.
    """

    number: int
    digest: str
    model: str
    input: Mapping[str, Any]
    destination: str = ""
    priority: int = 0
    files: Mapping[str, Path] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """``trainings`` or ``predictions``, as the API calls them."""
        return "trainings" if self.destination else "predictions"


def read_jobs(path: Path) -> list[BatchJob]:
    """Read a file of jobs; empty lines count in the numbers and are left out.

    Raises:
        InputError: lines are no jobs; their numbers are named.
    """
    jobs, problems = [], []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not text.strip():
            continue
        try:
            jobs.append(_job(number, text, path.parent))
        except (ValueError, InputError) as error:
            problems.append(f"line {number}: {error}")
    refuse(path, problems)
    if not jobs:
        raise InputError("jobs", str(path), "a file with a JSON object on each line", code="no_jobs")
    return jobs


def refuse(path: Path, problems: list[str]) -> None:
    """Name bad lines, if there are any.

    Raises:
        InputError: there are.
    """
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        expected = "a job on each line; nothing was begun:\n" + "\n".join([*problems[:_SHOWN], *more])
        raise InputError("jobs", str(path), expected, code="bad_lines")


def _job(number: int, text: str, folder: Path) -> BatchJob:
    value = json.loads(text)
    try:
        line = _Line.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(": ".join([*map(str, first["loc"]), first["msg"]])) from error
    files = {
        name: folder / given[1:]
        for name, given in line.input.items()
        if isinstance(given, str) and given.startswith("@") and len(given) > 1
    }
    for name, file in files.items():
        if not file.is_file():
            raise ValueError(f"input.{name} names the file {str(file)!r}, which is not there")
    model = line.model or ("local/lora-training" if line.destination else "local/lora")
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
    return BatchJob(number, digest, model, line.input, line.destination, line.priority, files)


class Results:
    """The file of results: a line when a job is accepted, and one when it has ended; at the end the latter alone.

    Args:
        path: is made where it is missing, and gone on with where it is there.
        jobs: those that it is of.

    Raises:
        InputError: it is of other jobs.
    """

    def __init__(self, path: Path, jobs: list[BatchJob]) -> None:
        self.path = path
        self._of_line: dict[int, dict[str, Any]] = {}
        digests = {job.number: job.digest for job in jobs}
        for entry in self._read():
            if digests.get(entry["line"]) != entry["digest"]:
                expected = f"a new file, as line {entry['line']} is not the job that this one has a result of"
                raise InputError("--output", str(path), expected, code="other_jobs")
            self._of_line[entry["line"]] = entry

    def status(self, job: BatchJob) -> str:
        """Return the state of a job as it is known; empty if it was not accepted yet."""
        return str(self._of_line.get(job.number, {}).get("status", ""))

    def identifier(self, job: BatchJob) -> str:
        """Return the identifier of a job; empty if it was not accepted yet."""
        return str(self._of_line.get(job.number, {}).get("id", ""))

    def note(self, job: BatchJob, shown: Mapping[str, Any], **more: Any) -> None:
        """Write down what a job is now."""
        kept = {name: shown.get(name) for name in ("id", "status", "output", "error", "metrics")}
        entry = {"line": job.number, "digest": job.digest, **kept, **more}
        self._of_line[job.number] = entry
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(entry, ensure_ascii=False)}\n")

    def ended(self) -> list[dict[str, Any]]:
        """Return the results, in the order of the lines."""
        return [self._of_line[number] for number in sorted(self._of_line)]

    def _read(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        for text in self.path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(text)
                yield {**entry, "line": int(entry["line"]), "digest": str(entry["digest"])}
            except (ValueError, KeyError, TypeError) as error:
                if not text.startswith('{"line":'):
                    expected = "a new file, or results of this command to go on with"
                    raise InputError("--output", str(self.path), expected, code="no_results") from error
                # The line that was being written when the machine stopped.
