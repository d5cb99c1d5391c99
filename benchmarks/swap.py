"""Time to apply a LoRA, change its scale and restore the base: ours against diffusers, in one run.

    python -m benchmarks.swap [--family sd15|sd21|sdxl] [--device cpu|cuda] [--dtype float32|float16|bfloat16]
                              [--rank 16] [--repeats 5]

The base is full-size, with random weights. Ours: `read_lora`, `Patcher.apply`, `Patcher.apply` at another
scale, `Patcher.restore`. diffusers: `load_lora_weights` + `fuse_lora`; for another scale `unfuse_lora` + `fuse_lora`;
to restore `unfuse_lora` + `unload_lora_weights`. Both read the same kohya file, of all attention layers of the UNet and
the text encoders, and are checked to give the same output before the measurement.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor, nn

from benchmarks import random_models
from lora_service.lora.files import read_lora, write_lora
from lora_service.lora.key_mapping import strip_text_model
from lora_service.lora.patcher import Patcher
from lora_service.lora.scale import Scale
from lora_service.lora.weights import LoraLayer, LoraWeights
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.text_encoders import PromptEmbeds

Steps = tuple[Callable[[], object], Callable[[], object], Callable[[], object]]
"""The functions that apply a LoRA, change its scale and restore the base."""

FULL, HALF = Scale(1.0, 1.0), Scale(0.5, 0.5)


@dataclass(frozen=True)
class Times:
    """Seconds of each step of a swap, one for each repeat."""

    apply: list[float]
    rescale: list[float]
    restore: list[float]

    @property
    def total(self) -> list[float]:
        return [sum(parts) for parts in zip(self.apply, self.rescale, self.restore, strict=True)]


def main() -> None:
    """Print one table."""
    options = _options()
    dtype = getattr(torch, options.dtype)
    torch.set_num_threads(options.threads)
    base = random_models.base(options.family, 512, dtype, options.device, small_vae=True)
    models, pipeline = base.components, _pipeline(base)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "lora.safetensors")
        write_lora(path, _random_lora(models, options.rank))
        patcher = Patcher(models, {})
        _check_same_output(base, pipeline, patcher, path)
        weights = read_lora(path)
        rows = _measure(
            options,
            {
                "diffusers, from a file": _diffusers_steps(pipeline, path),
                "ours, from a file": _our_steps(patcher, lambda: read_lora(path)),
                "ours, from memory": _our_steps(patcher, lambda: weights),
            },
        )
    _print(rows, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", default="sd15", choices=random_models.DEFAULTS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    options.device = torch.device(options.device)
    return options


def _pipeline(base: DiffusionBase) -> Any:
    """Return diffusers' pipeline of the same models."""
    parts: dict[str, Any] = {"vae": base.vae, "unet": base.unet, "scheduler": DDIMScheduler(), **base.text.encoders}
    parts |= {name.replace("text_encoder", "tokenizer"): tokenizer for name, tokenizer in base.tokenizers.items()}
    if base.family.name == "sdxl":
        return StableDiffusionXLPipeline(**parts)
    return StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def _random_lora(models: dict[str, nn.Module], rank: int) -> LoraWeights:
    """Return random weights for every attention layer, small enough for fp16."""
    generator = torch.Generator().manual_seed(0)

    def layer(module: nn.Linear) -> LoraLayer:
        down = torch.randn(rank, module.in_features, generator=generator) * module.in_features**-0.5
        up = torch.randn(module.out_features, rank, generator=generator) * 0.01
        return LoraLayer(down, up, float(rank))

    return LoraWeights(
        {
            component: {
                strip_text_model(path): layer(module)
                for path, module in model.named_modules()
                if isinstance(module, nn.Linear) and "attn" in path
            }
            for component, model in models.items()
        }
    )


@torch.no_grad()
def _check_same_output(base: DiffusionBase, pipeline: Any, patcher: Patcher, path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    sample, states, pooled = (
        torch.randn(shape, generator=generator).to(base.device, base.dtype)
        for shape in ((1, 4, 8, 8), (1, 77, base.text.width), (1, 1280))
    )
    sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]], device=base.device)
    timestep = torch.tensor([500], device=base.device)

    def output() -> Tensor:
        return base.denoise(sample, timestep, PromptEmbeds(states, pooled), sizes).float()

    bare = output()
    patcher.apply([(read_lora(path), FULL)])
    ours = output()
    patcher.restore()
    pipeline.load_lora_weights(path)
    pipeline.fuse_lora()
    theirs = output()
    pipeline.unfuse_lora()
    pipeline.unload_lora_weights()
    difference, change = (ours - theirs).abs().max().item(), (ours - bare).abs().max().item()
    print(f"Largest difference of the UNet's outputs: {difference:.1e}, where the LoRA changes them by {change:.1e}.")
    if difference > 0.05 * change:
        raise SystemExit("The two do not do the same, so their times cannot be compared.")


def _our_steps(patcher: Patcher, read: Callable[[], LoraWeights]) -> Steps:
    loaded: list[LoraWeights] = []

    def apply() -> None:
        loaded[:] = [read()]
        patcher.apply([(loaded[0], FULL)])

    return apply, lambda: patcher.apply([(loaded[0], HALF)]), patcher.restore


def _diffusers_steps(pipeline: Any, path: Path) -> Steps:
    def apply() -> None:
        pipeline.load_lora_weights(path)
        pipeline.fuse_lora()

    def rescale() -> None:
        pipeline.unfuse_lora()
        pipeline.fuse_lora(lora_scale=0.5)

    def restore() -> None:
        pipeline.unfuse_lora()
        pipeline.unload_lora_weights()

    return apply, rescale, restore


def _measure(options: argparse.Namespace, methods: Mapping[str, Steps]) -> dict[str, Times]:
    """Measure the methods alternately, so that other load on the machine slows all of them."""
    rows = {name: Times([], [], []) for name in methods}
    for repeat in range(options.repeats + 1):
        for name, steps in methods.items():
            for step, seconds in zip(steps, (rows[name].apply, rows[name].rescale, rows[name].restore), strict=True):
                _synchronize(options.device)
                start = time.perf_counter()
                step()
                _synchronize(options.device)
                if repeat:  # the first is a warm-up
                    seconds.append(time.perf_counter() - start)
    return rows


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _print(rows: dict[str, Times], options: argparse.Namespace) -> None:
    print(
        f"Rank {options.rank}, {options.dtype} on {options.device}, {options.threads} threads, "
        f"median of {options.repeats} (in brackets: 99th percentile), milliseconds"
    )
    print(f"{'':24}{'apply':>18}{'other scale':>18}{'restore':>18}{'all three':>18}")
    for name, times in rows.items():
        columns = (times.apply, times.rescale, times.restore, times.total)
        print(f"{name:24}" + "".join(f"{_cell(column):>18}" for column in columns))
    theirs, ours = (statistics.median(rows[name].total) for name in ("diffusers, from a file", "ours, from a file"))
    print(f"Ours is {theirs / ours:.1f} times as fast.")


def _cell(seconds: list[float]) -> str:
    percentile = sorted(seconds)[min(len(seconds) - 1, int(0.99 * len(seconds)))]
    return f"{1e3 * statistics.median(seconds):.1f} ({1e3 * percentile:.1f})"


if __name__ == "__main__":
    main()
