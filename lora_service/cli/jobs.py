"""The commands that run a model: ``train``, ``generate`` and ``demo``.

torch and diffusers take seconds to import; the services do it once the inputs have been checked.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import click

from lora_service.cli.field_options import ConfigCommand, GroupedOption, config_options
from lora_service.errors import InputError
from lora_service.generation.request import GenerateRequest
from lora_service.services.inference_service import InferenceService
from lora_service.services.training_service import TrainingService, TrainingUpload
from lora_service.serving.form import IMAGE, INSTANCE_DATA_URLS
from lora_service.training.config import TrainConfig

_DEFAULT_SCALE = "0.8"
_PATH = click.Path(path_type=Path)
_EXISTING_PATH = click.Path(exists=True, path_type=Path)


@click.command("demo")
@click.option("-o", "--output", type=_PATH, default=Path("demo"), help="Folder.  [default: demo]")
def demo_command(output: Path) -> None:
    """Teach the embedded model a subject it has never seen, and show it on one sheet."""
    from lora_service.demo.show import show

    show(output, click.echo)


@click.command("train", cls=ConfigCommand)
@click.argument("pictures", type=_EXISTING_PATH, metavar="[ZIP]", required=False)
@click.option(
    "--instance_data_urls", cls=GroupedOption, group="Main", default="", metavar="LINKS",
    help=INSTANCE_DATA_URLS.description,
)  # fmt: skip
@config_options(TrainConfig)
@click.option(
    "-o", "--output", cls=GroupedOption, group="File", type=_PATH, default=Path("lora.safetensors"),
    help="The LoRA file.  [default: lora.safetensors]",
)  # fmt: skip
def train_command(pictures: Path | None, instance_data_urls: str, output: Path, **inputs: Any) -> None:
    """Teach what the pictures in ZIP show, and write one LoRA file.

    ZIP may also be a folder; without it, --instance_data_urls says where the pictures are.
    """
    _check_writable(output)
    with TrainingService() as service:
        result = service.train(TrainingUpload(pictures, instance_data_urls), inputs, log=click.echo)
        # Beside its destination first: a copy that breaks off must not leave half a file under the final name.
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".lora-") as beside:
            shutil.copyfile(result.path, Path(beside) / "whole").replace(output)
    click.echo(f"wrote {output}")
    click.echo(f"next: lora-service generate {result.prompt!r} --lora {output}")


@click.command("generate", cls=ConfigCommand)
@click.argument("prompt")
@click.option(
    "--lora", "loras", cls=GroupedOption, group="Picture", multiple=True, metavar="LINK[@SCALE]",
    help="A LoRA: a path or a link, and its scale; may be repeated.  [default scale: 0.8]",
)  # fmt: skip
@click.option(
    "--image", cls=GroupedOption, group="Picture", type=_EXISTING_PATH, help=IMAGE.description
)  # fmt: skip
@config_options(GenerateRequest, without=("prompt", "lora_urls", "lora_scales"))
@click.option(
    "-o", "--output", cls=GroupedOption, group="Files", type=_PATH, default=Path("pictures"),
    help="Folder for the pictures.  [default: pictures]",
)  # fmt: skip
def generate_command(prompt: str, loras: tuple[str, ...], output: Path, image: Path | None, **inputs: Any) -> None:
    """Draw PROMPT; <1> in it is what the first --lora learned."""
    links, scales = zip(*map(split_scale, loras), strict=True) if loras else ((), (_DEFAULT_SCALE,))
    inputs |= {"prompt": prompt, "lora_urls": "|".join(links), "lora_scales": "|".join(scales)}
    with InferenceService(allow_local=True) as service:
        paths = service.run(inputs, image=image, log=click.echo)
        output.mkdir(parents=True, exist_ok=True)
        for path in paths:
            click.echo(f"wrote {shutil.copyfile(path, _unused_path(output, path.suffix))}")


def split_scale(lora: str, default: str = _DEFAULT_SCALE) -> tuple[str, str]:
    """Return link and scale of ``LINK@0.5``; an @ within a link is left alone."""
    link, _, scale = lora.rpartition("@")
    numeric = scale.replace(".", "").replace("/", "").replace("-", "").isdigit()
    return (link, scale) if link and numeric else (lora, default)


def _unused_path(folder: Path, suffix: str) -> Path:
    """Return the next free ``picture-N`` in ``folder``: earlier pictures are kept."""
    number = 1
    while (path := folder / f"picture-{number}{suffix}").exists():
        number += 1
    return path


def _check_writable(path: Path) -> None:
    """Raise ``InputError`` before the training, not after it, when the file cannot be written."""
    if path.is_dir():
        raise InputError("--output", str(path), f"a file, like {path / 'lora.safetensors'}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise InputError("--output", str(path), f"a file that can be written ({error.strerror})") from error
