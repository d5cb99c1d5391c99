"""The commands about LoRA files: ``inspect``, ``convert``, ``merge``, ``resize`` and ``compare``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import click
import torch

from lora_service.cli.output_files import check_output, force_option, free_path
from lora_service.lora.arithmetic import BlockComparison, check_target, compare_loras, merge_loras, resize_lora
from lora_service.lora.files import FORMAT_NAMES, read_lora, write_lora
from lora_service.lora.summary import as_json, as_text, summarize
from lora_service.lora.weights import LoraWeights

_FILE = click.Path(path_type=Path)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: these products are so small that several threads would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@click.command("inspect")
@click.argument("file", type=_FILE)
@click.option("--json", "as_object", is_flag=True, help="Print one JSON object instead of lines for a person.")
@_one_thread()
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
    help="kohya or comfyui: every tool; diffusers: its pipelines; cloneofsimo: the first Replicate trainers; "
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
    weights = _read(file)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_lora(target, weights, format=lora_format, dtype=getattr(torch, dtype))
    click.echo(f"{target}: {lora_format} from {weights.format}")


_OUTPUT = click.option(
    "-o", "--output", type=_FILE, help="Where to write.  [default: a new name beside the first file]"
)


@click.command("merge")
@click.argument("loras", nargs=-1, required=True, metavar="FILE[@SCALE]...")
@click.option("--rank", type=int, help="Cut the sum to this rank and print the loss.  [default: the exact sum].")
@_OUTPUT
@force_option()
def merge_command(loras: tuple[str, ...], rank: int | None, output: Path | None, force: bool) -> None:
    """Add LoRA files at their scales into one.

    SCALE is 1 by default; 0.8/0.5 is 0.8 in the UNet and 0.5 in the text encoders. The sum is exact.
    """
    from lora_service.cli.train_and_generate import split_scale
    from lora_service.lora.scale import parse_scale

    parts = [split_scale(lora, default="1") for lora in loras]
    files = [Path(file) for file, _ in parts]
    if rank is not None:
        check_target(rank, None)
    target = output or free_path(files[0].with_name(f"{'-'.join(file.stem for file in files)}.safetensors"))
    check_output(target, force=force, inputs=files)
    merged = merge_loras([(_read(Path(file)), parse_scale(scale)) for file, scale in parts])
    lost = ""
    if rank is not None:
        resized = resize_lora(merged, rank=rank)
        merged, lost = resized.weights, f", {resized.error:.2%} of the change lost"
    strings = {"modelspec.title": target.stem, "ss_output_name": target.stem}
    target.parent.mkdir(parents=True, exist_ok=True)
    write_lora(target, replace(merged, metadata={**merged.metadata, **strings}))
    click.echo(f"{target}: {len(files)} LoRAs, rank {merged.rank}{lost}")


@click.command("resize")
@click.argument("file", type=_FILE)
@click.option("--rank", type=int, help="The new rank, at most, of every module.")
@click.option("--energy", type=float, help="Share of each module's squared singular values to keep, like 0.9.")
@_OUTPUT
@force_option()
def resize_command(file: Path, rank: int | None, energy: float | None, output: Path | None, force: bool) -> None:
    """Write a LoRA file with a lower rank.

    Name --rank or --energy. Each module keeps its largest singular values; the loss is printed.
    """
    check_target(rank, energy)
    suffix = f"r{rank}" if rank is not None else f"e{energy:g}"
    target = output or free_path(file.with_name(f"{file.stem}-{suffix}.safetensors"))
    check_output(target, force=force, inputs=[file])
    weights = _read(file)
    resized = resize_lora(weights, rank=rank, energy=energy)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_lora(target, resized.weights)
    ranks = sorted(layer.rank for _, _, layer in resized.weights if layer.rank)
    new = f"{ranks[0]} to {ranks[-1]}" if ranks and ranks[0] != ranks[-1] else str(resized.weights.rank)
    click.echo(f"{target}: rank {new} from {weights.rank}, {resized.error:.2%} of the change lost")


@click.command("compare")
@click.argument("first", type=_FILE)
@click.argument("second", type=_FILE)
@click.option("--json", "as_object", is_flag=True, help="Print one JSON object instead of lines for a person.")
@_one_thread()
def compare_command(first: Path, second: Path, as_object: bool) -> None:
    """Compare two LoRA files, block by block.

    Shown are the sizes of both changes, the cosine of the angle between them, and the size of their difference.
    """
    blocks = compare_loras(_read(first), _read(second))
    if as_object:
        click.echo(json.dumps({block: asdict(comparison) for block, comparison in blocks.items()}, indent=2))
        return
    width = max(map(len, blocks))
    click.echo(f"{'block':<{width}} {'first':>9} {'second':>9} {'cosine':>9} {'distance':>9}")
    for block, comparison in blocks.items():
        click.echo(f"{block:<{width}} {_numbers(comparison)}")


def _numbers(comparison: BlockComparison) -> str:
    if comparison.norms is None or comparison.distance is None:
        return "depends on the base's weights"
    cosine = "-" if comparison.cosine is None else f"{comparison.cosine:.4f}"
    return f"{comparison.norms[0]:>9.3f} {comparison.norms[1]:>9.3f} {cosine:>9} {comparison.distance:>9.3f}"


def _read(file: Path) -> LoraWeights:
    """Read a LoRA file, and say what of it was left out."""
    weights = read_lora(file)
    for warning in weights.warnings:
        click.echo(f"warning: {file.name}: {warning}", err=True)
    return weights
