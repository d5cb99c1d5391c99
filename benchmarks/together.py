"""Compare jobs that train together with the same jobs one after another: jobs per hour.

    python -m benchmarks.together                                  8 jobs on the embedded base
    python -m benchmarks.together --full sd15 --side 512 --device cuda --steps 200

Each job is whole, from a zip of its own pictures to its file; both ways alternate in one run.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks import random_models
from benchmarks.full_size import write_pictures
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.loading import load_base
from lora_service.settings import Settings
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.optimization.captured_gradients import CapturedGradients, CudaGraphs, PassRecorder
from lora_service.training.together.train_many import TrainingJob, train_many
from lora_service.training.trainer import Trainer, TrainResult


def jobs(folder: Path, count: int, options: argparse.Namespace) -> list[TrainingJob]:
    """Return ``count`` jobs with pictures, seeds and folders of their own."""
    made = []
    for number in range(count):
        source = write_pictures(folder / f"{number}.zip", options.side)
        inputs = {
            "task": "object", "class_word": "dog", "seed": number, "resolution": options.side, "samples": 0,
            "max_train_steps_ti": options.steps // 2, "max_train_steps_tuning": options.steps,
            "train_batch_size": options.batch,
        }  # fmt: skip

        def trainer(base: DiffusionBase, number: int = number) -> Trainer:
            gradients = CapturedGradients(PassRecorder(CudaGraphs().record, print)) if options.cuda_graphs else None
            return Trainer(base, folder / f"job {number} {time.monotonic_ns()}", gradients=gradients)

        made.append(TrainingJob(trainer, source, TrainConfig.of(inputs)))
    return made


def one_after_another(base: DiffusionBase, of: list[TrainingJob]) -> None:
    """Train each job alone."""
    for job in of:
        job.trainer(base).run(job.source, job.config)


def together(base: DiffusionBase, of: list[TrainingJob], *, cuda_graphs: bool) -> None:
    """Train all jobs together."""
    recorder = PassRecorder(CudaGraphs().record, print) if cuda_graphs else None
    for result in train_many(base, of, print, recorder):
        if not isinstance(result, TrainResult):
            raise result


def seconds(run: Callable[[], None], device: torch.device) -> float:
    """Return how long ``run`` takes."""
    started = time.monotonic()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", choices=random_models.DEFAULTS, nargs="?", const="sd15", help="a family, full size")
    parser.add_argument("--side", type=int, default=64, help="side of the pictures in pixels")
    parser.add_argument("--jobs", type=int, nargs="+", default=[2, 4, 8], help="numbers of jobs")
    parser.add_argument("--batch", type=int, default=1, help="pictures per step of each job")
    parser.add_argument("--steps", type=int, default=40, help="steps of stage 2; stage 1 has half of them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cuda-graphs", action="store_true", help="record the passes, both ways")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    base = (
        random_models.base(options.full, options.side, dtype, device, small_vae=True)
        if options.full
        else load_base(Settings(base_model="embedded", device=options.device), for_training=True)
    )
    print(f"{base.name}, {options.side}², batch {options.batch}, {options.steps} steps, {options.threads} thread(s)")
    with tempfile.TemporaryDirectory() as folder:
        one_after_another(base, jobs(Path(folder), 1, options))  # warm
        for count in options.jobs:
            of = jobs(Path(folder), count, options)
            apart_of, together_of = (
                partial(one_after_another, base, of),
                partial(together, base, of, cuda_graphs=options.cuda_graphs),
            )
            rounds = [(seconds(apart_of, device), seconds(together_of, device)) for _ in range(options.rounds)]
            apart, joint = (min(column) for column in zip(*rounds, strict=True))
            ratios = sorted(a / b for a, b in rounds)
            print(
                f"{count} jobs: one after another {apart:.1f} s, together {joint:.1f} s (the least of "
                f"{options.rounds}); {statistics.median(ratios):.2f} × the jobs per hour "
                f"({ratios[0]:.2f}–{ratios[-1]:.2f})",
                flush=True,
            )
            if device.type == "cuda":
                print(f"  peak of the card {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


if __name__ == "__main__":
    main()
