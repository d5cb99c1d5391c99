"""Measure whole jobs on a full-size base of random weights: loading, both stages, the file, patching, pictures.

    python -m benchmarks.full_size sd15                        at 256², on a CPU
    python -m benchmarks.full_size sdxl --dtype bfloat16
    python -m benchmarks.full_size sdxl --device cuda --side 1024 --train-steps 700 --picture-steps 30 --plain
    python -m benchmarks.full_size sdxl --device cuda --side 1024 --within 12

The base is written as a folder first, in a separate process, so that it is loaded the way users load it. ``--plain``
draws the picture with diffusers and PEFT too, from the same folder and file. ``--within`` limits the GPU's memory,
and trains as a GPU of that size has to: with gradient checkpointing and the UNet alone.
"""

from __future__ import annotations

import argparse
import io
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from benchmarks.random_models import DEFAULTS, write_folder
from lora_service.generation.generator import ImageGenerator
from lora_service.generation.request import GenerateRequest
from lora_service.lora.files import read_lora
from lora_service.lora.scale import Scale
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.loading import load_base, use_threads
from lora_service.settings import Settings
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.trainer import Trainer

GIB = 2**30


def main() -> None:
    options = _options()
    if options.write:
        write_folder(options.family, options.write, getattr(torch, options.dtype))
        return
    with tempfile.TemporaryDirectory() as folder:
        _run(options, Path(folder))


def _run(options: argparse.Namespace, folder: Path) -> None:
    device = torch.device(options.device)
    if options.within:
        whole = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, options.within * GIB / whole))
    with _phase("written", device):
        command = [sys.executable, "-m", "benchmarks.full_size", options.family, "--dtype", options.dtype]
        subprocess.run([*command, "--write", str(folder / "base")], check=True)
    settings = Settings(
        base_model=str(folder / "base"), device=options.device, dtype=options.dtype, torch_threads=options.threads
    )
    use_threads(settings)
    with _phase("loaded", device):
        base = load_base(settings, for_training=True)
    lora = _train(base, folder, options)
    generator, request = ImageGenerator(base), _request(options)
    with _phase("LoRA read and patched, 1 step drawn", device):
        weights = read_lora(lora)
        generator.generate(request.model_copy(update={"num_inference_steps": 1}), [(weights, Scale(1.0, 1.0))])
    with _phase(f"picture of {options.picture_steps} steps", device):
        generator.generate(request, [(weights, Scale(1.0, 1.0))])
    with _phase("LoRA taken out", device):
        generator.patcher.restore()
    if options.plain:
        del base, generator
        _draw_plainly(folder / "base", lora, options)


def _train(base: DiffusionBase, folder: Path, options: argparse.Namespace) -> Path:
    # The driver still reports all of the GPU's memory, so that "auto" would not enable checkpointing.
    low_memory = {"gradient_checkpointing": "on", "learning_rate_text": 0} if options.within else {}
    config = TrainConfig.of(
        {
            "task": "object",
            "class_word": "dog",
            "seed": 1,
            "resolution": options.side,
            "train_batch_size": options.batch,
            "max_train_steps_ti": options.train_steps,
            "max_train_steps_tuning": options.train_steps,
            **low_memory,
        }
    )
    with _phase("trained, from the zip to the file", base.device):
        settings = Settings(cuda_graphs=options.cuda_graphs)
        result = Trainer(base, folder / "job", log=print, settings=settings).run(
            write_pictures(folder / "pictures.zip", options.side), config
        )
    for name, stage in result.stages.items():
        print(f"  {name}: {stage.seconds / stage.steps:.3f} s/step, losses {stage.losses}")
    print(f"  file: {result.path.stat().st_size / 1e6:.1f} MB; seconds by phase {result.seconds}")
    return result.path


def _draw_plainly(folder: Path, lora: Path, options: argparse.Namespace) -> None:
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    with _phase("plain diffusers + PEFT: loaded", device):
        pipeline = DiffusionPipeline.from_pretrained(folder, dtype=dtype).to(device)
        pipeline.set_progress_bar_config(disable=True)
    with _phase("plain diffusers + PEFT: LoRA loaded, 1 step drawn", device):
        pipeline.load_lora_weights(lora)
        _plain_picture(pipeline, 1, options.side)
    with _phase(f"plain diffusers + PEFT: picture of {options.picture_steps} steps", device):
        _plain_picture(pipeline, options.picture_steps, options.side)
    with _phase("plain diffusers + PEFT: LoRA taken out", device):
        pipeline.unload_lora_weights()


def _plain_picture(pipeline: Any, steps: int, side: int) -> None:
    pipeline("a photo of a dog", num_inference_steps=steps, width=side, height=side)


def _request(options: argparse.Namespace) -> GenerateRequest:
    size = {"width": options.side, "height": options.side}
    steps = {"num_inference_steps": options.picture_steps, "scheduler": "DDIM"}
    return GenerateRequest.of({"prompt": "a photo of <s1><s2>", "seed": 1, **size, **steps})


def write_pictures(path: Path, side: int) -> Path:
    """Write a zip of two pictures of noise."""
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(2):
            data = io.BytesIO()
            Image.effect_noise((side, side), 60 + 20 * number).convert("RGB").save(data, "PNG")
            archive.writestr(f"{number}.png", data.getvalue())
    return path


@contextmanager
def _phase(name: str, device: torch.device) -> Iterator[None]:
    """Print the wall time and the CPU time of a phase, and the peak memory of the process until its end."""
    started, cpu_started = time.monotonic(), time.process_time()
    yield
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    peak = f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB:.1f} GiB"
    if device.type == "cuda":
        peak += f", of the card {torch.cuda.max_memory_allocated(device) / GIB:.1f} GiB"
    times = f"{time.monotonic() - started:.1f} s, {time.process_time() - cpu_started:.1f} s on processors"
    print(f"{name}: {times}; {peak}", flush=True)


def _options() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=DEFAULTS)
    parser.add_argument("--side", type=int, default=256, help="side of the pictures in pixels")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--train-steps", type=int, default=2, help="steps of each stage")
    parser.add_argument("--picture-steps", type=int, default=4)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", help="default: float32 on a CPU, bfloat16 on a GPU")
    parser.add_argument("--within", type=float, metavar="GIB", help="train and draw in this much of the GPU's memory")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cuda-graphs", action="store_true", help="record the training's steps")
    parser.add_argument("--plain", action="store_true", help="draw with diffusers and PEFT too")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.within and options.device != "cuda":
        parser.error("--within needs --device cuda")
    options.dtype = options.dtype or ("bfloat16" if options.device == "cuda" else "float32")
    return options


if __name__ == "__main__":
    main()
