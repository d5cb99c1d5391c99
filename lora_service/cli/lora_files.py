"""The commands about LoRA files: ``inspect`` and ``convert``."""

from __future__ import annotations

from pathlib import Path

import click
import torch

from lora_service.errors import InputError
from lora_service.lora import summary
from lora_service.lora.reader import read_lora
from lora_service.lora.writer import FORMAT_NAMES, write_lora

_FILE = click.Path(path_type=Path)


@click.command("inspect")
@click.argument("file", type=_FILE)
@click.option("--json", "as_object", is_flag=True, help="Print one JSON object instead of lines for a person.")
def inspect_command(file: Path, as_object: bool) -> None:
    """Show what a LoRA file holds.

    Layout, base model, rank, size of the change by block, tokens, trigger and header.
    """
    summarized = summary.summarize(file)
    click.echo(summary.as_json(summarized) if as_object else summary.as_text(summarized))


@click.command("convert")
@click.argument("file", type=_FILE)
@click.option(
    "--to",
    "layout",
    required=True,
    type=click.Choice(FORMAT_NAMES),
    help="kohya: every tool; diffusers: its pipelines; cloneofsimo: the first Replicate trainers; "
    "embedding: only the learned tokens, for A1111 and ComfyUI.",
)
@click.option("-o", "--output", type=_FILE, help="Where to write; beside FILE if it is not given.")
@click.option(
    "--dtype", type=click.Choice(["float16", "bfloat16", "float32"]), default="float16", show_default=True,
    help="Number format of the tensors.",
)  # fmt: skip
def convert_command(file: Path, layout: str, output: Path | None, dtype: str) -> None:
    """Write a LoRA file in another layout."""
    weights = read_lora(file)
    target = output or _path_beside(file, layout)
    write_lora(target, weights, layout=layout, dtype=getattr(torch, dtype))
    click.echo(f"{target}: {layout} from {weights.layout}")


def _path_beside(file: Path, layout: str) -> Path:
    """Return the path of a converted file without a name of its own, which must not overwrite another."""
    target = file.with_name(f"{file.stem}-{layout}.safetensors")
    if target.exists():
        raise InputError("--output", str(target), "a new file; name one with -o, which is overwritten if it exists")
    return target
