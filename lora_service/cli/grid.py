"""``lora-service grid``: checkpoints × scales × prompts on one sheet, all from the same seed."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import click
from PIL import Image

from lora_service.cli.field_options import ConfigCommand, GroupedOption, config_options
from lora_service.cli.output_files import check_output, force_option
from lora_service.cli.train_and_generate import lora_option
from lora_service.downloads.parsed_url import redact
from lora_service.downloads.resolve import resolve
from lora_service.errors import InputError, blame_input
from lora_service.generation.image_grid import SIDE, ImageRow, draw_grid
from lora_service.generation.request import GenerateRequest
from lora_service.lora.scale import SCALE_PATTERN
from lora_service.services.inference_service import InferenceService
from lora_service.whole_files import whole_file

_MOST_PICTURES, _LARGEST_SIDE = 400, 512
_WITHOUT = (
    "prompt", "lora_urls", "lora_scales", "lora_mode", "num_outputs", "output_format", "output_quality",
    "preview_every", "prompt_strength", "mask_feather", "keep_unmasked", "adapter_type", "adapter_scale",
)  # fmt: skip
"""Inputs that the grid sets, or that are of no use without a picture to start from."""


@dataclass(frozen=True)
class _Cell:
    """A picture of the grid."""

    lora: str
    prompt: str
    scale: str


@click.command("grid", cls=ConfigCommand)
@click.argument("prompts", nargs=-1, required=True, metavar="PROMPT...")
@click.option(
    "--lora", "loras", cls=GroupedOption, group="Picture", multiple=True, required=True, metavar="LINK",
    help="A LoRA or one of its checkpoints: a path or a link; may be repeated.",
)  # fmt: skip
@click.option(
    "--scales", cls=GroupedOption, group="Picture", default="0,0.5,0.8,1", show_default=True, metavar="SCALES",
    help="Scales of the LoRA, split by commas; 0 is the base alone.",
)  # fmt: skip
@config_options(GenerateRequest, without=_WITHOUT)
@click.option(
    "-o", "--output", cls=GroupedOption, group="Files", type=click.Path(path_type=Path), default=Path("grid.png"),
    help="The sheet.  [default: grid.png]",
)  # fmt: skip
@force_option("Files")
def grid_command(
    prompts: tuple[str, ...], loras: tuple[str, ...], scales: str, output: Path, force: bool, **inputs: Any
) -> None:
    """Draw each PROMPT with each --lora at each scale from the same seed, on one labelled sheet.

    <1> in a prompt is what the LoRA learned. A row is a prompt and a LoRA, a column a scale.
    """
    if output.suffix.lower() != ".png":
        raise InputError("--output", str(output), "a file that ends in .png")
    steps = _scales(scales)
    cells = [_Cell(*each) for each in product(loras, prompts, steps)]
    if len(cells) > _MOST_PICTURES:
        shape = f"{len(loras)} × {len(steps)} × {len(prompts)}"
        raise InputError(
            "--scales", scales, f"so few that there are {_MOST_PICTURES} pictures at most, and not {shape}"
        )
    check_output(output, force=force, inputs=map(Path, loras))
    for lora in loras:  # a mistake in the last one is told before the first is drawn
        with blame_input("--lora"):
            resolve(lora, allow_local=True)
    if inputs["seed"] is None:
        inputs["seed"] = random.SystemRandom().randrange(2**32)
    pictures = dict(zip(cells, _pictures(cells, inputs), strict=True))
    rows = [
        ImageRow(_name(lora), [pictures[_Cell(lora, prompt, scale)] for scale in steps],
                 [f"{scale}: {prompt}" for scale in steps])
        for prompt, lora in product(prompts, loras)
    ]  # fmt: skip
    widest = max(max(picture.size) for picture in pictures.values())
    sheet = draw_grid(rows, [f"seed {inputs['seed']}"], side=min(max(widest, SIDE), _LARGEST_SIDE))
    with whole_file(output) as path:
        sheet.save(path, "PNG")
    click.echo(f"wrote {output}: {len(cells)} pictures, seed {inputs['seed']}")


def _scales(text: str) -> list[str]:
    """Return the scales, each once.

    Raises:
        InputError: one is none.
    """
    scales = [scale.strip() for scale in text.split(",") if scale.strip()]
    unusable = next((scale for scale in scales if not re.fullmatch(SCALE_PATTERN, scale)), None)
    if unusable is not None or not scales:
        raise InputError("--scales", unusable or text, "numbers split by commas, like 0,0.5,1")
    return list(dict.fromkeys(scales))


def _pictures(cells: Sequence[_Cell], inputs: dict[str, Any]) -> Iterator[Image.Image]:
    """Draw the cells one after another; the LoRA changes least often."""
    with InferenceService(allow_local=True) as service:
        for number, cell in enumerate(cells, start=1):
            asked = inputs | {"prompt": cell.prompt, "lora_urls": cell.lora, "lora_scales": cell.scale}
            with lora_option([cell.lora]):
                (path,) = service.run(asked, log=lambda line: None)
            click.echo(f"picture {number} of {len(cells)}: {_name(cell.lora)} at {cell.scale}")
            with Image.open(path) as picture:
                picture.load()
            yield picture


def _name(lora: str) -> str:
    """Return a LoRA's name for the sheet: of its path or link the last part, without its suffix."""
    name = re.split(r"[/\\]", redact(lora).partition("?")[0].rstrip("/"))[-1]
    return name.removesuffix(".safetensors")[:60] or "lora"
