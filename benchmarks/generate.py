"""Time of pictures with a LoRA: ours against plain diffusers with PEFT's layers and with fused weights, in one run.

    python -m benchmarks.generate [embedded|sd15|sd21|sdxl] [--side 256] [--batch 1 4] [--steps 10] [--repeats 3]
                                  [--device cpu|cuda] [--dtype float32|float16|bfloat16] [--drafts] [--fp8]
                                  [--compile] [--cuda-graphs]

Bases but the embedded one are full-size with random weights. All sides draw with the same models in turn, with the same
scheduler, steps, guidance and seed, and are checked to draw the same picture first. *First picture*: a LoRA that was
never used, from its file to the picture, with what was there before taken out; *next*: the same LoRA again. *Step*: the
median time between two passes of the UNet. On a CPU all are seconds of the processor, over all threads.

``--drafts`` adds pictures with `cache_interval` 2 and 3 and how far they are from the full ones; ``--compile`` draws
ours compiled, at the end, and ``--fp8`` does so with weights in 8-bit floats. A ratio above 1 says that ours is faster.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image
from torch import nn

from benchmarks import random_models
from lora_service.generation.generator import ImageGenerator
from lora_service.generation.prompt_cache import PromptCache
from lora_service.generation.request import GenerateRequest
from lora_service.lora.files import read_lora, write_lora
from lora_service.lora.key_mapping import strip_text_model
from lora_service.lora.scale import Scale
from lora_service.lora.weights import LoraLayer, LoraWeights
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.loading import load_base, prepare_for_drawing
from lora_service.models.quantization import quantize_backbone
from lora_service.settings import Settings

PROMPT, NEGATIVE, GUIDANCE, SEED = "a red star", "grey", 5.0, 3
FULL = Scale(1.0, 1.0)
Images = list[Image.Image]


@dataclass(frozen=True)
class Job:
    """The pictures that every side draws."""

    side: int
    steps: int
    batch: int


class Side(Protocol):
    """A way to draw pictures with a LoRA."""

    name: str

    def load(self, path: Path) -> None:
        """Have the LoRA in the file ``path``, and no other, in the models."""

    def draw(self, job: Job) -> Images:
        """Draw the pictures of ``job``."""

    def unload(self) -> None:
        """Leave the bare models to the next side."""


class Ours:
    """The generator of this package.

    Args:
        inputs: of the request, beside what all sides have.
    """

    def __init__(self, base: DiffusionBase, name: str = "ours", **inputs: Any) -> None:
        self.name = name
        self._generator, self._inputs = ImageGenerator(base, prompt_cache=PromptCache()), inputs
        self._loras: list[tuple[LoraWeights, Scale]] = []

    def load(self, path: Path) -> None:
        self._loras = [(read_lora(path), FULL)]

    def draw(self, job: Job) -> Images:
        inputs = {
            "prompt": PROMPT, "negative_prompt": NEGATIVE, "guidance_scale": GUIDANCE, "seed": SEED,
            "scheduler": "DDIM", "width": job.side, "height": job.side, "num_inference_steps": job.steps,
            "num_outputs": job.batch, **self._inputs,
        }  # fmt: skip
        return [each.image for each in self._generator.generate(GenerateRequest.of(inputs), self._loras)]

    def unload(self) -> None:
        self._generator.patcher.restore()


class Diffusers:
    """diffusers' pipeline, with the LoRA in PEFT's layers or fused into the weights."""

    def __init__(self, base: DiffusionBase, *, fused: bool) -> None:
        self.name = "diffusers, fused" if fused else "diffusers, PEFT layers"
        self._fused = fused
        config = {**base.scheduler_config, "clip_sample": False, "set_alpha_to_one": False}
        parts: dict[str, Any] = {"vae": base.vae, "unet": base.unet, "scheduler": DDIMScheduler.from_config(config)}
        parts |= base.text.encoders
        parts |= {name.replace("text_encoder", "tokenizer"): tokenizer for name, tokenizer in base.tokenizers.items()}
        if base.family.name == "sdxl":
            self._pipeline: Any = StableDiffusionXLPipeline(**parts, add_watermarker=False)
        else:
            none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
            self._pipeline = StableDiffusionPipeline(**parts, **none)
        self._pipeline.set_progress_bar_config(disable=True)

    def load(self, path: Path) -> None:
        self._pipeline.load_lora_weights(path)
        if self._fused:
            self._pipeline.fuse_lora()

    def draw(self, job: Job) -> Images:
        images: Images = self._pipeline(
            PROMPT, negative_prompt=NEGATIVE, guidance_scale=GUIDANCE, num_inference_steps=job.steps, width=job.side,
            height=job.side, num_images_per_prompt=job.batch,
            generator=[torch.Generator().manual_seed(SEED + number) for number in range(job.batch)],
        ).images  # fmt: skip
        return images

    def unload(self) -> None:
        if self._fused:
            self._pipeline.unfuse_lora()
        self._pipeline.unload_lora_weights()


@dataclass
class Times:
    """Seconds of one side: of all pictures of a job, and of a step."""

    first: list[float] = field(default_factory=list)
    next: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)


def measure(sides: list[Side], job: Job, loras: Callable[[], Path], unet: nn.Module, repeats: int) -> dict[str, Times]:
    """Measure the sides in turns; the first turn is a warm-up and does not count.

    Args:
        loras: returns a LoRA's file that was never used.
    """
    rows = {side.name: Times() for side in sides}
    for repeat in range(repeats + 1):
        for side in sides:
            path = loras()
            started = now(unet)
            side.load(path)
            side.draw(job)
            first = now(unet) - started
            with steps_of(unet) as times:
                started = now(unet)
                side.draw(job)
                drawn = now(unet) - started
            side.unload()
            if repeat:
                row = rows[side.name]
                row.first.append(first)
                row.next.append(drawn)
                row.step += [after - before for before, after in pairwise(times)]
    return rows


def now(unet: nn.Module) -> float:
    """Return the time at which all that was asked of the device is done: of the processor's work where it does it.

    Other programs on the same processor do not count then.
    """
    device = next(unet.parameters()).device
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def steps_of(unet: nn.Module) -> Iterator[list[float]]:
    """Yield a list that gets the time of each pass of the UNet; a compiled one's passes are not seen."""
    times: list[float] = []
    block = unet.get_submodule("conv_in")  # not the UNet itself, which is called uncompiled with hooks
    handle = block.register_forward_pre_hook(lambda *_: times.append(now(unet)))
    try:
        yield times
    finally:
        handle.remove()


def random_lora(base: DiffusionBase, seed: int, rank: int) -> LoraWeights:
    """Return random weights for every attention layer of the UNet and the text encoders."""
    generator = torch.Generator().manual_seed(seed)

    def layer(module: nn.Linear) -> LoraLayer:
        down = torch.randn(rank, module.in_features, generator=generator) * module.in_features**-0.5
        return LoraLayer(down, torch.randn(module.out_features, rank, generator=generator) * 0.01, float(rank))

    layers = {
        component: {
            strip_text_model(path): layer(module)
            for path, module in model.named_modules()
            if isinstance(module, nn.Linear) and "attn" in path
        }
        for component, model in base.components.items()
    }
    return LoraWeights({component: changes for component, changes in layers.items() if changes})


def distance(images: Images, others: Images) -> float:
    """Return the mean difference of two lists of pictures, per channel and pixel, of 255."""
    pairs = zip(images, others, strict=True)
    return float(np.mean([np.abs(np.asarray(one, int) - np.asarray(other, int)).mean() for one, other in pairs]))


def check_same_picture(sides: list[Side], job: Job, path: Path) -> None:
    """End the run if ours and the others do not draw the same."""
    drawn = []
    for side in sides:
        side.load(path)
        drawn.append(side.draw(job))
        side.unload()
    differences = [distance(drawn[0], others) for others in drawn[1:]]
    print(f"Mean difference of the pictures from ours, of 255: {', '.join(f'{d:.2f}' for d in differences)}")
    if max(differences) > 3:
        raise SystemExit("They do not draw the same, so their times cannot be compared.")


def report(rows: dict[str, Times], job: Job) -> None:
    """Print a table: seconds, and how many times as fast ours is."""
    print(f"\n{job.batch} × {job.side}², {job.steps} steps: seconds (in brackets: theirs / ours)")
    print(f"{'':26}{'first picture':>20}{'a minute':>10}{'next':>20}{'step':>20}")
    own = rows["ours"]
    for name, times in rows.items():
        cells = [
            f"{statistics.median(column):.3f} ({statistics.median(column) / statistics.median(ours):.2f})"
            if column
            else "–"
            for column, ours in ((times.first, own.first), (times.next, own.next), (times.step, own.step))
        ]
        print(f"{name:26}{cells[0]:>20}{60 / statistics.median(times.first):>10.1f}{cells[1]:>20}{cells[2]:>20}")


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    base = load_bench_base(options)
    side = options.side or base.defaults.resolution
    sides: list[Side] = [Ours(base), Diffusers(base, fused=False), Diffusers(base, fused=True)]
    print(f"{options.base}, {options.dtype} on {options.device}, {options.threads} threads, rank {options.rank}")
    with tempfile.TemporaryDirectory() as folder:
        seeds = iter(range(10**6))

        def new_lora() -> Path:
            path = Path(folder, f"{next(seeds)}.safetensors")
            write_lora(path, random_lora(base, next(seeds), options.rank))
            return path

        check_same_picture(sides, Job(side, options.steps, 1), new_lora())
        if options.drafts:
            sides += [Ours(base, f"ours, cache_interval {n}", cache_interval=n) for n in (2, 3)]
            _report_drafts(sides, Job(side, options.steps, 1))
        for batch in options.batch:
            job = Job(side, options.steps, batch)
            report(measure(sides, job, new_lora, base.unet, options.repeats), job)
        job = Job(side, options.steps, 1)
        if options.compile or options.cuda_graphs:
            base.compile(cuda_graphs=options.cuda_graphs)
            print("\nCompiled:", end="")
            report(measure([Ours(base)], job, new_lora, base.unet, options.repeats), job)
            base.compiled = base.compiled_decoder = None
        if options.fp8:
            quantize_backbone(base.backbone, "fp8", base.dtype, base.device, base.family.kept)
            print("\nIn 8-bit floats:", end="")
            report(measure([Ours(base)], job, new_lora, base.unet, options.repeats), job)


def _report_drafts(sides: list[Side], job: Job) -> None:
    """Print how far drafts are from the full picture, without a LoRA: random ones make pictures of noise."""
    full, *drafts = [each for each in sides if isinstance(each, Ours)]
    images = full.draw(job)
    for draft in drafts:
        print(f"{draft.name}: mean difference from the full picture {distance(images, draft.draw(job)):.2f} of 255")


def load_bench_base(options: argparse.Namespace) -> DiffusionBase:
    """Return the base that ``options`` name, ready to draw."""
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    if options.base == "embedded":
        return load_base(Settings(base_model="embedded", device=options.device, dtype=options.dtype))
    base = random_models.base(options.base, random_models.DEFAULTS[options.base].resolution, dtype, device)
    prepare_for_drawing(base)
    return base


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", nargs="?", default="embedded", choices=["embedded", *random_models.DEFAULTS])
    parser.add_argument("--side", type=int, help="side of the pictures in pixels; default: the base's own")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--drafts", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--cuda-graphs", action="store_true")
    parser.add_argument("--fp8", action="store_true")
    options = parser.parse_args()
    if options.cuda_graphs and options.device != "cuda":
        parser.error("--cuda-graphs needs --device cuda")
    options.dtype = options.dtype or ("float16" if options.device == "cuda" else "float32")
    return options


if __name__ == "__main__":
    main()
