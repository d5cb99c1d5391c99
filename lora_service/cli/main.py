"""The command line: the same inputs as the form, by the same names."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from lora_service import __version__
from lora_service.cli.base_models import download_command
from lora_service.cli.check import check_command
from lora_service.cli.links import cache_group, resolve_command
from lora_service.cli.lora_files import convert_command, inspect_command
from lora_service.errors import InputError, LoraServiceError
from lora_service.generation.request import GenerateRequest
from lora_service.settings import Settings
from lora_service.training.config import TrainConfig


def _normalized(option: str) -> str:
    """``--lora-rank`` is ``--lora_rank``, the input's own name."""
    return option.replace("-", "_")


@click.group(
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 110,
        "token_normalize_func": _normalized,
    }
)
@click.version_option(__version__)
def cli() -> None:
    """Teach Stable Diffusion a face, an object or a style, and draw with what it learned."""


for _command in (check_command, inspect_command, convert_command, resolve_command, cache_group, download_command):
    cli.add_command(_command)


def inputs_of(model: type[BaseModel], *left_out: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Options for all fields of ``model`` under their own names; only what is given reaches the command."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for name, field in reversed(model.model_fields.items()):
            if name in left_out:
                continue
            default = "" if field.default in (None, "", PydanticUndefined) else f"  [default: {field.default}]"
            option = click.option(f"--{name}", name, help=f"{field.description}{default}", metavar="VALUE")
            command = option(command)
        return command

    return decorate


@cli.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("demo"), help="Folder.  [default: demo]")
def demo(output: Path) -> None:
    """Teach the embedded model a subject it has never seen, and show it on one sheet."""
    from lora_service.demo.show import show

    show(output, click.echo)


@cli.command()
@click.argument("pictures", type=click.Path(exists=True, path_type=Path), metavar="[ZIP]", required=False)
@click.option(
    "--instance_data_urls", default="", metavar="LINKS", help="Links to pictures or zips instead, split by |."
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("lora.safetensors"), help="The LoRA file."
)
@inputs_of(TrainConfig)
def train(pictures: Path | None, instance_data_urls: str, output: Path, **inputs: str | None) -> None:
    """Teach what the pictures in ZIP (or a folder, or at links) show; writes one LoRA file."""
    from lora_service.services.training_service import TrainingService, TrainingUpload

    _writable(output)
    with TrainingService() as service:
        result = service.train(TrainingUpload(pictures, instance_data_urls), inputs, log=click.echo)
        # Beside its destination first: a copy that breaks off must not leave half a file under the name asked for.
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".lora-") as beside:
            shutil.copyfile(result.path, Path(beside) / "whole").replace(output)
    click.echo(f"wrote {output}")
    click.echo(f"next: lora-service generate {result.prompt!r} --lora {output}")


@cli.command()
@click.argument("prompt")
@click.option("--lora", "loras", multiple=True, metavar="LINK[@SCALE]", help="A LoRA: a path or a link, and its scale.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("pictures"), help="Folder for the pictures."
)
@click.option("--image", type=click.Path(exists=True, path_type=Path), help="A picture to start from.")
@inputs_of(GenerateRequest, "prompt", "lora_urls", "lora_scales")
def generate(prompt: str, loras: tuple[str, ...], output: Path, image: Path | None, **inputs: str | None) -> None:
    """Draw PROMPT; <1> in it is what the first --lora learned."""
    from lora_service.services.inference_service import InferenceService

    links, scales = zip(*map(_link_and_scale, loras), strict=True) if loras else ((), ("0.8",))
    given = inputs | {"prompt": prompt, "lora_urls": "|".join(links), "lora_scales": "|".join(scales)}
    with InferenceService(allow_local=True) as service:
        paths = service.run(given, image=image, log=click.echo)
        output.mkdir(parents=True, exist_ok=True)
        for path in paths:
            click.echo(f"wrote {shutil.copyfile(path, _free(output, path.suffix))}")


@cli.command()
@click.argument("kind", type=click.Choice(["predict", "train"]))
@click.option("--port", type=int, help="Port.  [default: 5000 for predict, 5001 for train]")
@click.option("--host", default="127.0.0.1", help="Address to listen on.  [default: 127.0.0.1]")
def serve(kind: Any, port: int | None, host: str) -> None:
    """Run Cog's own HTTP server without Docker, and restart its worker when it dies."""
    from lora_service.models.registry import locate
    from lora_service.serving.server import serve as run

    settings = Settings.from_environment()
    locate(settings.base_model, settings.model_cache)  # what can be no base is refused here and not by every job
    sys.exit(run(kind, port=port, host=host))


def _link_and_scale(text: str) -> tuple[str, str]:
    """``LINK@0.5`` as link and scale; an @ within a link is left alone."""
    link, _, scale = text.rpartition("@")
    numeric = scale.replace(".", "").replace("/", "").replace("-", "").isdigit()
    return (link, scale) if link and numeric else (text, "0.8")


def _free(folder: Path, suffix: str) -> Path:
    """The next free ``picture-N`` in ``folder``: earlier pictures are kept."""
    number = 1
    while (path := folder / f"picture-{number}{suffix}").exists():
        number += 1
    return path


def _writable(path: Path) -> None:
    """Fail before the training, not after it, when the file cannot be written."""
    if path.is_dir():
        raise InputError("--output", str(path), f"a file, like {path / 'lora.safetensors'}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise InputError("--output", str(path), f"a file that can be written ({error.strerror})") from error


def main() -> None:
    """The entry point: a user's mistake is one sentence on standard error and exit status 2."""
    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except LoraServiceError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("stopped", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
