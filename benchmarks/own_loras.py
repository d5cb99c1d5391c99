"""Time of pictures that each have a LoRA of their own: in one batch, against one merged LoRA and one after another.

    python -m benchmarks.own_loras [embedded|sd15|sd21|sdxl] [--loras 4] [--rank 16] [--side 256] [--steps 10]
                                   [--repeats 5] [--device cpu|cuda] [--dtype float32|float16|bfloat16]

Bases but the embedded one are full-size with random weights. All ways draw as many pictures, of the same seeds, prompt,
scheduler and guidance, in turns. *New*: LoRAs that were never drawn with, which are merged, or put side by side, and
whose prompts are encoded; *again*: the same request once more, as of a server that is asked for more pictures of the
same LoRAs. The fastest turn counts, because whatever else a machine does makes others slower. On a CPU all are seconds
of the processor. The pictures of the first and the last way are checked to be the same. In brackets the throughput, in
shares of that of one merged LoRA.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import random_models
from benchmarks.generate import FULL, GUIDANCE, SEED, distance, load_bench_base, now, random_lora
from lora_service.generation.generator import ImageGenerator
from lora_service.generation.image_files import GeneratedImage
from lora_service.generation.prompt_cache import PromptCache
from lora_service.generation.request import GenerateRequest
from lora_service.lora.patcher import ScaledLora

PROMPT = "a red star"
MERGED, BESIDE, ONE_BY_ONE = "one LoRA, merged", "a LoRA each, side by side", "a LoRA each, one after another"


@dataclass(frozen=True)
class Way:
    """A way to draw as many pictures as there are LoRAs."""

    name: str
    draw: Callable[[Sequence[ScaledLora]], list[GeneratedImage]]


def ways(generator: ImageGenerator, inputs: dict[str, Any]) -> list[Way]:
    """Return the three ways; ``inputs`` are those of the requests."""

    def draw(loras: Sequence[ScaledLora], **more: Any) -> list[GeneratedImage]:
        return generator.generate(GenerateRequest(**{**inputs, **more}), list(loras))

    return [
        Way(MERGED, lambda loras: draw(loras[:1], num_outputs=len(loras))),
        Way(BESIDE, lambda loras: draw(loras, lora_mode="each")),
        Way(ONE_BY_ONE, lambda loras: [image for lora in loras for image in draw([lora])]),
    ]


def measure(
    each: Sequence[Way], loras: Callable[[], list[ScaledLora]], backbone: torch.nn.Module, repeats: int
) -> dict[str, tuple[float, float]]:
    """Return the fewest seconds of each way for new LoRAs and for the same again; the first turn is a warm-up."""
    times: dict[str, list[tuple[float, float]]] = {way.name: [] for way in each}
    for repeat in range(repeats + 1):
        for way in each:
            new, seconds = loras(), []
            for _ in range(2):
                started = now(backbone)
                way.draw(new)
                seconds.append(now(backbone) - started)
            if repeat:
                times[way.name].append((seconds[0], seconds[1]))
    return {name: (min(first for first, _ in turns), min(again for _, again in turns)) for name, turns in times.items()}


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    base = load_bench_base(options)
    side = options.side or base.defaults.resolution
    generator = ImageGenerator(base, prompt_cache=PromptCache())
    inputs = {
        "prompt": PROMPT, "guidance_scale": GUIDANCE, "seed": SEED, "width": side, "height": side,
        "num_inference_steps": options.steps,
    }  # fmt: skip
    made = iter(range(10**6))

    def loras() -> list[ScaledLora]:
        return [(random_lora(base, next(made), options.rank), FULL) for _ in range(options.loras)]

    merged, beside, one_by_one = ways(generator, inputs)
    checked = loras()
    drawn = [[image.image for image in way.draw(checked)] for way in (beside, one_by_one)]
    print(f"{options.base}, {options.dtype} on {options.device}, {options.threads} threads, rank {options.rank}")
    print(f"Mean difference of the pictures side by side from those one after another, of 255: {distance(*drawn):.3f}")
    started = time.monotonic()
    times = measure([merged, beside, one_by_one], loras, base.backbone, options.repeats)
    print(f"\n{options.loras} × {side}², {options.steps} steps: seconds, and throughput against {MERGED}")
    print(f"{'':32}{'new':>18}{'again':>18}")
    for name, seconds in times.items():
        cells = [f"{own:.3f} ({least / own:.2f})" for own, least in zip(seconds, times[MERGED], strict=True)]
        print(f"{name:32}{cells[0]:>18}{cells[1]:>18}")
    print(f"Measured in {time.monotonic() - started:.0f} s")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", nargs="?", default="embedded", choices=["embedded", *random_models.DEFAULTS])
    parser.add_argument("--loras", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--side", type=int, help="side of the pictures in pixels; default: the base's own")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    options.dtype = options.dtype or ("float16" if options.device == "cuda" else "float32")
    return options


if __name__ == "__main__":
    main()
