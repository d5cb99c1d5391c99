"""``lora-service batch``: many trainings or drawings through a gateway, by its API."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import httpx

from lora_service.cli.batch_lines import FINAL, BatchJob, Results, read_jobs, refuse
from lora_service.cli.output_files import check_folder
from lora_service.errors import ServingError
from lora_service.gateway.schemas import input_problems
from lora_service.whole_files import whole_file

_LOOK_SECONDS = 1.0
_SINGLE_LOOKS = 10  # jobs of a round that are not on the list's first page
_PATIENCE_SECONDS = 600.0  # for a gateway that does not answer, or whose queue is full
_TIMEOUT = httpx.Timeout(120.0)


@click.command("batch")
@click.argument("jobs", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="JOBS.JSONL")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path),
    help="Results; one that is there is gone on with.  [default: JOBS-results.jsonl]",
)  # fmt: skip
@click.option("--files", type=click.Path(file_okay=False, path_type=Path), help="Folder that takes the output files.")
@click.option("--url", envvar="REPLICATE_BASE_URL", default="http://127.0.0.1:8000", show_default=True, metavar="URL",
              help="The gateway.")  # fmt: skip
@click.option("--token", envvar="REPLICATE_API_TOKEN", default="any", metavar="TOKEN", help="REPLICATE_API_TOKEN.")
@click.option("--at-once", type=click.IntRange(1, 1000), default=50, show_default=True,
              help="Jobs that wait or run at the same time.")  # fmt: skip
def batch_command(jobs: Path, output: Path | None, files: Path | None, url: str, token: str, at_once: int) -> None:
    """Run each line of JOBS.JSONL through a gateway, and write one file of results.

    A line is a JSON object: input, and where they are not the usual ones model, destination (of a training) and
    priority. An input "@dog.zip" is a file beside JOBS.JSONL. All lines are checked before the first job begins. What
    was interrupted goes on when the same command is given again.
    """
    output = output or jobs.with_name(f"{jobs.stem}-results.jsonl")
    check_folder(output.parent)
    if files:
        check_folder(files, "--files")
    lines = read_jobs(jobs)
    results = Results(output, lines)
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=url, headers=headers, timeout=_TIMEOUT, follow_redirects=True) as client:
        batch = Batch(client, lines, results, files, jobs)
        batch.check()
        batch.run(at_once)
    counts = Counter(results.status(job) for job in lines)
    click.echo(f"{', '.join(f'{count} {status}' for status, count in sorted(counts.items()))}: {output}")
    if counts["succeeded"] < len(lines):
        raise SystemExit(1)


class Batch:
    """One run of the command.

    Args:
        client: asks the gateway.
        files: the folder of output files; None: the results have links to them, which expire.
        path: of the jobs, for messages.
    """

    def __init__(
        self, client: httpx.Client, jobs: list[BatchJob], results: Results, files: Path | None, path: Path
    ) -> None:
        self._client, self._jobs, self._results, self._files, self._path = client, jobs, results, files, path
        self._versions: dict[str, dict[str, Any]] = {}
        self._uploads: dict[Path, str] = {}

    def check(self) -> None:
        """Check every line's model and inputs, before anything begins.

        Raises:
            InputError: there are lines that cannot be run.
        """
        problems = []
        for job in self._jobs:
            version = self._version(job.model)
            if not version:
                problems.append(f"line {job.number}: the gateway has no model {job.model!r}")
                continue
            found = input_problems(version["openapi_schema"], job.input)
            problems += [f"line {job.number}: input.{name} {text}" for name, text in found.items()]
        refuse(self._path, problems)

    def run(self, at_once: int) -> None:
        """Run what has not ended yet."""
        left = [job for job in self._jobs if self._results.status(job) not in FINAL]
        open_jobs = {self._results.identifier(job): job for job in left if self._results.identifier(job)}
        waiting = iter([job for job in left if not self._results.identifier(job)])
        done, total = len(self._jobs) - len(left), len(self._jobs)
        while True:
            for job in _take(waiting, at_once - len(open_jobs)):
                open_jobs[self._submit(job)] = job
            if not open_jobs:
                break
            for shown in self._ended(open_jobs):
                job = open_jobs.pop(shown["id"])
                self._results.note(job, shown, **self._saved(job, shown))
                done += 1
                click.echo(f"line {job.number} {shown['status']} ({done} of {total})")
            time.sleep(_LOOK_SECONDS)
        with whole_file(self._results.path) as path:
            lines = (json.dumps(entry, ensure_ascii=False) for entry in self._results.ended())
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def _version(self, model: str) -> dict[str, Any]:
        """Return a version of the gateway's; {} if there is none."""
        if model not in self._versions:
            place, _, identifier = model.partition(":")
            path = f"/v1/models/{place}/versions/{identifier}" if identifier else f"/v1/models/{place}"
            answer = self._ask("GET", path, allowed=(404,))
            shown = answer.json() if answer.status_code == 200 else {}
            self._versions[model] = (shown if identifier else shown.get("latest_version")) or {}
        return self._versions[model]

    def _submit(self, job: BatchJob) -> str:
        """Have a job accepted; returns its identifier."""
        inputs = {**job.input, **{name: self._uploaded(path) for name, path in job.files.items()}}
        body: dict[str, Any] = {"input": inputs, "priority": job.priority}
        place, version = job.model.partition(":")[0], self._version(job.model)["id"]
        if job.destination:
            path, body["destination"] = f"/v1/models/{place}/versions/{version}/trainings", job.destination
        else:
            path, body["version"] = "/v1/predictions", version
        shown = self._ask("POST", path, json=body).json()
        self._results.note(job, shown)
        return str(shown["id"])

    def _uploaded(self, path: Path) -> str:
        """Return the link of a file, which is uploaded once."""
        if path not in self._uploads:
            with path.open("rb") as file:
                answer = self._ask("POST", "/v1/files", files={"content": (path.name, file)})
            self._uploads[path] = answer.json()["urls"]["get"]
        return self._uploads[path]

    def _ended(self, open_jobs: Mapping[str, BatchJob]) -> Iterator[dict[str, Any]]:
        """Yield those that have ended: as the lists of the newest jobs show them, or looked up one by one."""
        shown: dict[str, dict[str, Any]] = {}
        for kind in {job.kind for job in open_jobs.values()}:
            shown |= {each["id"]: each for each in self._ask("GET", f"/v1/{kind}").json()["results"]}
        missing = [identifier for identifier in open_jobs if identifier not in shown][:_SINGLE_LOOKS]
        for identifier in missing:
            shown[identifier] = self._ask("GET", f"/v1/{open_jobs[identifier].kind}/{identifier}").json()
        for identifier in [name for name in open_jobs if shown.get(name, {}).get("status") in FINAL]:
            yield shown[identifier]

    def _saved(self, job: BatchJob, shown: Mapping[str, Any]) -> dict[str, Any]:
        """Download the output of a job; returns the names of the files for its result."""
        if self._files is None:
            return {}
        output = shown.get("output")
        if isinstance(output, Mapping):
            output = output.get("weights")
        links = [link for link in (output if isinstance(output, list) else [output]) if isinstance(link, str)]
        names = []
        for number, link in enumerate(link for link in links if link.startswith("http")):
            path = self._files / f"{job.number:05d}-{number}{Path(httpx.URL(link).path).suffix}"
            with whole_file(path) as part:
                part.write_bytes(self._ask("GET", link).content)
            names.append(path.name)
        return {"files": names}

    def _ask(self, method: str, path: str, allowed: tuple[int, ...] = (), **options: Any) -> httpx.Response:
        """Send a request; a gateway that is away or full is waited for.

        Raises:
            ServingError: it does not answer for long, or refuses.
        """
        end = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                answer = self._client.request(method, path, **options)
            except httpx.ConnectError as error:  # the request was not sent: it may be again
                if time.monotonic() > end:
                    message = f"The gateway {self._client.base_url} cannot be reached: is it up?"
                    raise ServingError(message, code="gateway_away") from error
                time.sleep(_LOOK_SECONDS)
                continue
            if answer.status_code not in (429, 503) or time.monotonic() > end:
                break
            time.sleep(float(answer.headers.get("retry-after", _LOOK_SECONDS)))
        if answer.status_code >= 400 and answer.status_code not in allowed:
            message = f"The gateway answers {answer.status_code} to {method} {path}: {answer.text[:500]}"
            raise ServingError(message, code="gateway_refused")
        return answer


def _take(jobs: Iterator[BatchJob], count: int) -> Iterator[BatchJob]:
    for _, job in zip(range(count), jobs, strict=False):
        yield job
