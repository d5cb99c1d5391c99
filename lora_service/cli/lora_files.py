"""The commands about LoRA files: ``inspect`` and ``convert``."""

from __future__ import annotations

from pathlib import Path

import click
import torch

from lora_service.cli.output_files import check_output, force_option, free_path
from lora_service.lora.files import FORMAT_NAMES, read_lora, write_lora
from lora_service.lora.summary import as_json, as_text, summarize

_FILE = click.Path(path_type=Path)


@click.command("inspect")
@click.argument("file", type=_FILE)
@click.option("--json", "as_object", is_flag=True, help="Print one JSON object instead of lines for a person.")
def inspect_command(file: Path, as_object: bool) -> None:
    """Show what a LoRA file holds.

    Format, base model, rank, size of the change by block, tokens, trigger and header.
    """
    summary = summarize(read_lora(file))
    click.echo(as_json(summary) if as_object else as_text(summary))


@click.command("convert")
@click.argument("file", type=_FILE)
@click.option(
    "--to",
    "lora_format",
    required=True,
    type=click.Choice(FORMAT_NAMES),
    help="kohya: every tool; diffusers: its pipelines; cloneofsimo: the first Replicate trainers; "
    "embedding: only the learned tokens, for A1111 and ComfyUI.",
)
@click.option("-o", "--output", type=_FILE, help="Where to write.  [default: a new name beside FILE]")
@click.option(
    "--dtype", type=click.Choice(["float16", "bfloat16", "float32"]), default="float16", show_default=True,
    help="Number format of the tensors.",
)  # fmt: skip
@force_option()
def convert_command(file: Path, lora_format: str, output: Path | None, dtype: str, force: bool) -> None:
    """Write a LoRA file in another format."""
    target = output or free_path(file.with_name(f"{file.stem}-{lora_format}.safetensors"))
    check_output(target, force=force, inputs=[file])
    weights = read_lora(file)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_lora(target, weights, format=lora_format, dtype=getattr(torch, dtype))
    click.echo(f"{target}: {lora_format} from {weights.format}")
