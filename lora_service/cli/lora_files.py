"""The commands ``inspect`` and ``convert`` of the command line.

What reads files brings torch along, seconds of it, so it is imported by the commands that need it and not here.
"""

from __future__ import annotations

from pathlib import Path

import click

from lora_service.errors import InputError

_FILE = click.Path(path_type=Path)


@click.command("inspect")
@click.argument("file", type=_FILE)
@click.option("--json", "as_object", is_flag=True, help="Print one JSON object instead of lines for a person.")
def inspect_command(file: Path, as_object: bool) -> None:
    """Show what a LoRA file holds: format, base, rank, size of the change per block, tokens, trigger, header."""
    from lora_service.lora.files import read_lora
    from lora_service.lora.summary import as_json, as_text, summarize

    summary = summarize(read_lora(file))
    click.echo(as_json(summary) if as_object else as_text(summary))


@click.command("convert")
@click.argument("file", type=_FILE)
@click.option(
    "--to",
    "lora_format",
    required=True,
    type=click.Choice(["kohya", "diffusers", "cloneofsimo", "embedding"]),
    help="kohya: every tool; diffusers: its pipelines; cloneofsimo: the first Replicate trainers; "
    "embedding: only the learned tokens, for A1111 and ComfyUI.",
)
@click.option("-o", "--output", type=_FILE, help="Where to write; beside FILE if it is not given.")
@click.option(
    "--dtype", type=click.Choice(["float16", "bfloat16", "float32"]), default="float16", show_default=True,
    help="Number format of the tensors.",
)  # fmt: skip
def convert_command(file: Path, lora_format: str, output: Path | None, dtype: str) -> None:
    """Write a LoRA file in another format."""
    import torch

    from lora_service.lora.files import read_lora, write_lora

    weights = read_lora(file)
    target = output or _beside(file, lora_format)
    write_lora(target, weights, format=lora_format, dtype=getattr(torch, dtype))
    click.echo(f"{target}: {lora_format} from {weights.format}")


def _beside(file: Path, lora_format: str) -> Path:
    target = file.with_name(f"{file.stem}-{lora_format}.safetensors")
    if target.exists():
        raise InputError("the output", str(target), "a new file; name one with -o, which is overwritten if it exists")
    return target
