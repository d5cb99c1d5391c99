"""The commands that run a model: ``train``, ``generate`` and ``demo``.

torch and diffusers take seconds to import; the services do it once the inputs have been checked.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_service.cli.field_options import ConfigCommand, GroupedOption, class_data_option, config_options
from lora_service.cli.output_files import check_folder, check_output, force_option, free_path
from lora_service.cli.run_options import (
    check_resume,
    is_main_process,
    recorded_output,
    run_options,
    stop_on_interrupt,
    training_settings,
)
from lora_service.downloads.parsed_url import redact_all
from lora_service.errors import InputError
from lora_service.generation.request import PICTURE_FORMATS, GenerateRequest
from lora_service.lora.scale import SCALE_PATTERN
from lora_service.services.inference_service import InferenceService
from lora_service.services.model_service import Log
from lora_service.services.training_service import TrainingService, TrainingUpload
from lora_service.serving.form import ADAPTER_CONDITION_IMAGE, IMAGE, INSTANCE_DATA_URLS, MASK
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.inputs.resolved_config import ResolvedConfig
from lora_service.training.runs.run_folder import RunFolder, RunOptions
from lora_service.whole_files import whole_file

if TYPE_CHECKING:  # they import torch
    from lora_service.generation.denoising_progress import Preview
    from lora_service.training.callbacks.training_progress import OnProgress

_DEFAULT_SCALE = "0.8"
_LONGEST_NAME = 50  # characters, of up to four bytes; file systems take 255
_PATH = click.Path(path_type=Path)
_EXISTING_PATH = click.Path(exists=True, path_type=Path)


@click.command("demo")
@click.option("-o", "--output", type=_PATH, default=Path("demo"), help="Folder.  [default: demo]")
def demo_command(output: Path) -> None:
    """Teach the embedded model a subject it has never seen, and show it on one sheet."""
    from lora_service.demo.show import show

    with _training_output() as (log, on_progress):
        show(output, log, on_progress)


@click.command("train", cls=ConfigCommand)
@click.argument("pictures", type=_EXISTING_PATH, metavar="[ZIP]", required=False)
@click.option(
    "--instance_data_urls", cls=GroupedOption, group="Main", default="", metavar="LINKS",
    help=INSTANCE_DATA_URLS.description,
)  # fmt: skip
@config_options(TrainConfig)
@class_data_option
@click.option(
    "-o", "--output", cls=GroupedOption, group="File", type=_PATH,
    help="The LoRA file.  [default: a new name, like dog-zumvek.safetensors]",
)  # fmt: skip
@run_options
@force_option("File")
def train_command(
    pictures: Path | None,
    instance_data_urls: str,
    class_data: Path | None,
    output: Path | None,
    force: bool,
    run_folder: Path | None,
    save_every: int | None,
    keep_checkpoints: int,
    resume: Path | None,
    trackers: tuple[str, ...] | None,
    num_processes: int | None,
    **inputs: Any,
) -> None:
    """Teach what the pictures in ZIP show, and write one LoRA file.

    ZIP may also be a folder; without it, --instance_data_urls says where the pictures are. What is shown and kept on
    the way lies in a run folder. Ctrl-C ends the training after a step and writes the file of what was learned by
    then; a second one drops it. Either way, --resume goes on.
    """
    if resume:
        check_resume(resume, instance_data_urls, run_folder, save_every, {**inputs, "class_data": class_data})
        output = output or recorded_output(resume)
    elif pictures is None and not instance_data_urls.strip():
        raise click.UsageError("Missing argument 'ZIP': a zip or folder of pictures, or --instance_data_urls.")
    if output is None:
        check_folder(Path())
    elif not (resume and output.exists()):
        check_output(output, force=force, inputs=[path for path in (pictures, class_data) if path])
    settings = training_settings(trackers, num_processes)
    with TrainingService(settings, allow_local=True) as service, _training_output() as (log, on_progress):
        run = RunFolder(resume or run_folder or RunFolder.free(_run_path(pictures, output)).path)
        with stop_on_interrupt(run) as stop:
            if resume:
                result = service.resume(resume, pictures=pictures, stop=stop, log=log, on_progress=on_progress)
            else:
                options = RunOptions(save_every, keep_checkpoints, output, stop)
                upload = TrainingUpload(pictures, instance_data_urls, class_data)
                folder = run.path if is_main_process() else None
                result = service.train(
                    upload, inputs, log=log, on_progress=on_progress, run_folder=folder, options=options
                )
        if not is_main_process():
            return
        target = output if output and force else free_path(output or _lora_name(pictures, result.resolved))
        with whole_file(target) as path:
            shutil.copyfile(result.path, path)
    click.echo(f"wrote {target}")
    if result.interrupted and run.has_checkpoints:
        click.echo(f"to go on: {shlex.join(['lora-service', 'train', '--resume', str(run.path)])}")
    click.echo(f"next: {shlex.join(['lora-service', 'generate', result.prompt, '--lora', str(target)])}")


@click.command("generate", cls=ConfigCommand)
@click.argument("prompt")
@click.option(
    "--lora", "loras", cls=GroupedOption, group="Picture", multiple=True, metavar="LINK[@SCALE]",
    help="A LoRA: a path or a link, and its scale; may be repeated.  [default scale: 0.8]",
)  # fmt: skip
@click.option(
    "--image", cls=GroupedOption, group="Picture", type=_EXISTING_PATH, help=IMAGE.description
)  # fmt: skip
@click.option(
    "--mask", cls=GroupedOption, group="Picture", type=_EXISTING_PATH, help=MASK.description
)  # fmt: skip
@click.option(
    "--adapter_condition_image", cls=GroupedOption, group="Control", type=_EXISTING_PATH,
    help=ADAPTER_CONDITION_IMAGE.description,
)  # fmt: skip
@config_options(GenerateRequest, without=("prompt", "lora_urls", "lora_scales"))
@click.option(
    "-o", "--output", cls=GroupedOption, group="Files", type=_PATH, default=Path("pictures"),
    help="Folder for the pictures, or a file like out.png.  [default: pictures]",
)  # fmt: skip
@force_option("Files")
def generate_command(
    prompt: str,
    loras: tuple[str, ...],
    output: Path,
    force: bool,
    image: Path | None,
    mask: Path | None,
    adapter_condition_image: Path | None,
    **inputs: Any,
) -> None:
    """Draw PROMPT; <1> in it is what the first --lora learned."""
    links, scales = zip(*map(split_scale, loras), strict=True) if loras else ((), (_DEFAULT_SCALE,))
    inputs |= {"prompt": prompt, "lora_urls": "|".join(links), "lora_scales": "|".join(scales)}
    files = _named_pictures(output, inputs, len(links))
    pictures: dict[str, Any] = {"image": image, "mask": mask, "adapter_condition_image": adapter_condition_image}
    sources = [*map(Path, links), *(path for path in pictures.values() if path)]
    for file in files:
        check_output(file, force=force, inputs=sources)
    if not files:
        check_folder(output)
    with InferenceService(allow_local=True) as service, lora_option(loras):
        with _preview_file(output.parent if files else output) as on_preview:
            paths = service.run(inputs, **pictures, on_preview=on_preview, log=click.echo)
        for path in paths:
            number = int(path.stem.rpartition("-")[2])  # those that were held back are not among them
            target = files[number] if files else free_path(output / f"picture-1{path.suffix}")
            with whole_file(target) as written:
                shutil.copyfile(path, written)
            click.echo(f"wrote {target}")


@contextmanager
def _training_output() -> Iterator[tuple[Log, OnProgress | None]]:
    """Yield the log, and what shows the progress: a line that is rewritten on a terminal, else none.

    Of several processes that train together, only the main one says anything.
    """
    if not is_main_process():
        yield lambda line: None, lambda progress: None
        return
    if not sys.stderr.isatty():
        yield click.echo, None
        return
    from lora_service.cli.progress_bar import ProgressBar

    with ProgressBar() as bar:
        yield bar.log, bar.show


@contextmanager
def _preview_file(folder: Path) -> Iterator[Callable[[Preview], None]]:
    """Yield what writes previews to one file in ``folder``, which is removed when the pictures are there."""
    path: Path | None = None

    def show(preview: Preview) -> None:
        nonlocal path
        path = path or free_path(folder / "preview.png")
        with whole_file(path) as written:
            preview.image.save(written, "PNG")
        click.echo(f"preview of step {preview.step} of {preview.steps}: {path}")

    try:
        yield show
    finally:
        if path is not None:
            path.unlink(missing_ok=True)


@contextmanager
def lora_option(loras: Sequence[str]) -> Iterator[None]:
    """Name ``--lora`` in errors about the two inputs that it stands for."""
    try:
        yield
    except InputError as error:
        if error.field not in ("lora_urls", "lora_scales"):
            raise
        raise InputError("--lora", redact_all(loras), error.expected, code=error.code) from error


def split_scale(lora: str, default: str = _DEFAULT_SCALE) -> tuple[str, str]:
    """Return link and scale of ``LINK@0.5``; an @ within a link is left alone.

    ``civitai:123@456`` names a version, as it does where there is no scale.
    """
    link, _, scale = lora.rpartition("@")
    is_version = scale.isdecimal() and re.search(r"civitai(:|\.\w+/([^@]*/)?models/)\d+$", link)
    if not link or is_version or not re.fullmatch(SCALE_PATTERN, scale):
        return lora, default
    return link, scale


def _lora_name(pictures: Path | None, resolved: ResolvedConfig) -> Path:
    """Return a file name of the pictures' name, or else the class or the task, and the trigger word."""
    config = resolved.config
    subject = pictures.absolute().stem if pictures else config.class_word or config.task
    trigger = resolved.trigger.removesuffix(config.class_word)
    words = re.findall(r"[\w.-]+", f"{subject} {trigger}")
    return Path(f"{'-'.join(words).strip('.-')[:_LONGEST_NAME] or 'lora'}.safetensors")


def _run_path(pictures: Path | None, output: Path | None) -> Path:
    """Return the run folder beside the LoRA file, of its name, or of the pictures' where it is not known yet."""
    name = output.stem if output else pictures.absolute().stem if pictures else "lora"
    return (output.parent if output else Path()) / f"{name[:_LONGEST_NAME] or 'lora'}-run"


def _named_pictures(output: Path, inputs: dict[str, Any], loras: int) -> list[Path]:
    """Return the files that ``-o out.png`` names, one for each picture; none where it names a folder.

    ``output_format`` becomes the file's where it is not given.
    """
    file_format = PICTURE_FORMATS.get(output.suffix.lower())
    if file_format is None or output.is_dir():
        return []
    if (inputs["output_format"] or file_format) != file_format:
        expected = f"a file that ends as output_format {inputs['output_format']} does"
        raise InputError("--output", str(output), expected)
    inputs["output_format"] = file_format
    count = (inputs["num_outputs"] or 1) * (loras if inputs["lora_mode"] == "each" else 1)
    return [output] if count == 1 else [output.with_stem(f"{output.stem}-{i}") for i in range(1, count + 1)]
