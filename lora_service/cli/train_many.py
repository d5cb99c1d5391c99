"""``lora-service train-many``: several trainings in the same batches."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from lora_service.cli.batch_lines import BatchJob, read_jobs, refuse
from lora_service.cli.output_files import check_folder, check_output, force_option
from lora_service.cli.run_options import stop_on_interrupt
from lora_service.downloads.parsed_url import redact
from lora_service.errors import InputError, LoraServiceError
from lora_service.services.joint_training import JointTrainingService, NamedTraining
from lora_service.services.training_service import TrainingUpload
from lora_service.training.runs.run_folder import RunFolder, RunOptions, StopSignal
from lora_service.whole_files import whole_file

_MODELS = ("local/lora-training", "local/lora")
"""What a line of `lora-service batch` is for that names no model."""


@click.command("train-many")
@click.argument("jobs", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="JOBS.JSONL")
@click.option(
    "-o", "--output", type=click.Path(file_okay=False, path_type=Path), default=Path("loras"), show_default=True,
    help="Folder for the LoRA files and the run folders.",
)  # fmt: skip
@force_option()
def train_many_command(jobs: Path, output: Path, force: bool) -> None:
    """Do the trainings of JOBS.JSONL together, on one base and in the same batches.

    A line is a JSON object: input, and destination, whose last part is the LoRA file's name; without it the zip's.
    An input "@dog.zip" is a file beside JOBS.JSONL. It takes the files of `lora-service batch`. All lines are checked
    before the first job begins. Ctrl-C ends all after a step, and writes the files of what was learned by then.
    """
    lines = read_jobs(jobs)
    check_folder(output)
    trainings = _trainings(lines, jobs, output)
    files = [output / f"{training.name}.safetensors" for training in trainings]
    inputs = [path for line in lines for path in line.files.values()]
    for file in files:
        check_output(file, force=force, inputs=inputs)
    with (
        JointTrainingService(allow_local=True) as service,
        stop_on_interrupt(
            *(RunFolder(training.run_folder) for training in trainings),
            stops=[training.options.stop for training in trainings],
        ),
    ):
        results = service.train_many(trainings, log=click.echo)
    failed = 0
    for file, result in zip(files, results, strict=True):
        if isinstance(result, Exception):
            failed += 1
            continue
        with whole_file(file) as path:
            shutil.copyfile(result.path, path)
        click.echo(f"wrote {file}" + (", of what was learned by then" if result.interrupted else ""))
    if failed:
        click.echo(f"{failed} of {len(results)} failed, for the reasons above", err=True)
        raise SystemExit(1)


def _trainings(lines: list[BatchJob], path: Path, output: Path) -> list[NamedTraining]:
    """Return the trainings of the lines of ``path``.

    Raises:
        InputError: lines are no trainings, or two have one name; their numbers are named.
    """
    trainings, problems, numbers = [], [], dict[str, int]()
    for line in lines:
        given = {**line.input, **{input_name: str(file) for input_name, file in line.files.items()}}
        file, links, class_data = (
            given.pop(each, None) for each in ("instance_data", "instance_data_urls", "class_data")
        )
        upload = TrainingUpload(
            line.files.get("instance_data", file), str(links or ""), line.files.get("class_data", class_data)
        )
        name = line.destination.rpartition("/")[2] or (upload.file.stem if isinstance(upload.file, Path) else "")
        name = name or f"line-{line.number}"
        run = RunFolder.free(output / f"{name}-run")
        training = NamedTraining(name, upload, given, run.path, RunOptions(stop=StopSignal()))
        if line.model not in _MODELS:
            problems.append(f"line {line.number}: model is {line.model!r}; here it is BASE_MODEL that is taught")
        try:
            if isinstance(upload.file, str):
                raise InputError("instance_data", redact(upload.file), '"@FILE"; links go into instance_data_urls')
            training.config()
        except LoraServiceError as error:
            problems.append(f"line {line.number}: {error}")
        # Some file systems take names for one that differ by case alone.
        if (other := numbers.setdefault(name.casefold(), line.number)) != line.number:
            problems.append(f"line {line.number}: the name {name!r} is line {other}'s; give it a destination")
        trainings.append(training)
    refuse(path, problems)
    return trainings
