"""Measure the time of a new server to READY and to the end of its first job, and the share of the imports.

    python -m benchmarks.cold_start [--base embedded|random-sd15|FOLDER] [--repeats 3] [--side PIXELS] [--steps N]
    python -m benchmarks.cold_start --server train       # jobs are trainings of a few steps
    python -m benchmarks.cold_start --against FOLDER     # alternates with another checkout, and prints the ratio
    python -m benchmarks.cold_start --without peft       # hides an installed package
    python -m benchmarks.cold_start --imports            # python -X importtime of the same code, by package

Each run is a new process: Cog's server from its start to READY, then jobs over HTTP, the first and the second.
The files are in the page cache after the first run, so disks are not measured. ``random-sd15`` is a full-size
Stable Diffusion 1.5 of random weights in half precision, written to a temporary folder first.
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import requests

from lora_service.models.defaults import EMBEDDED
from lora_service.serving import entries
from lora_service.serving.entries import Mode
from lora_service.serving.server import CogServer

_PREDICTION = """
from lora_service.services.inference_service import InferenceService
from lora_service.services.worker import Worker

service = InferenceService(worker=Worker())
service.warm_up()
service.run({inputs!r})
"""
_LINE = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \|\s*(\S+)")
_SPLIT = ("torch", "diffusers", "transformers", "lora_service")
"""Large packages, whose subpackages are listed separately."""


@dataclass(frozen=True)
class StartTimes:
    """Seconds of one run: from the process's start to READY and to the end of the first job, and for the second."""

    ready: float
    first: float
    second: float


@dataclass(frozen=True)
class Checkout:
    """A checkout, the environment variables of its processes, and which of its servers is measured."""

    home: Path
    environment: Mapping[str, str]
    mode: Mode = "predict"

    @staticmethod
    def of(home: Path, base: str, mode: Mode, site_folder: Path | None = None) -> Checkout:
        """Return the checkout at ``home``; a ``sitecustomize`` in ``site_folder`` takes precedence."""
        python_path = os.pathsep.join(str(folder) for folder in (site_folder, home) if folder)
        return Checkout(home, {"BASE_MODEL": base, "PYTHONPATH": python_path}, mode)


def main() -> None:
    """Print one table."""
    options = _options()
    inputs = training_inputs() if options.server == "train" else picture_inputs(options.side, options.steps)
    with tempfile.TemporaryDirectory() as folder:
        base = str(random_folder(Path(folder))) if options.base == "random-sd15" else options.base
        here = Checkout.of(entries.HOME, base, options.server, _site_folder(options.without, Path(folder)))
        if options.imports:
            _print_imports(here, inputs)
            return
        checkouts = {"here": here}
        if options.against:
            checkouts["against"] = Checkout.of(options.against.resolve(), base, options.server)
        _print(_measure_all(checkouts, inputs, options.repeats), options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the time from a process's start to its first picture.")
    parser.add_argument("--server", choices=["predict", "train"], default="predict")
    parser.add_argument("--base", default="embedded", help="as BASE_MODEL, or random-sd15")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", type=int, help="side of the pictures; default: the base's")
    parser.add_argument("--steps", type=int, help="steps of the sampler; default: the base's")
    parser.add_argument("--against", type=Path, help="another checkout, measured alternately with this one")
    parser.add_argument(
        "--without", action="append", default=[], metavar="PACKAGE", help="package to hide in this checkout's runs"
    )
    parser.add_argument("--imports", action="store_true", help="show the time of the imports instead")
    options = parser.parse_args()
    if options.imports and options.server != "predict":
        parser.error("--imports is of --server predict")
    return options


def picture_inputs(side: int | None, steps: int | None) -> dict[str, object]:
    """Return the inputs of one picture; None: the base's own."""
    inputs: dict[str, object] = {"prompt": "a red star", "seed": 1}
    chosen = {"num_inference_steps": steps, "width": side, "height": side}
    return inputs | {name: value for name, value in chosen.items() if value is not None}


def training_inputs() -> dict[str, object]:
    """Return the inputs of a training of a few steps."""
    data = base64.b64encode((entries.HOME / "lora_service" / "demo" / "subject.zip").read_bytes()).decode()
    steps = {"max_train_steps_ti": 4, "max_train_steps_tuning": 4}
    return {"instance_data": f"data:application/zip;base64,{data}", "task": "object", "seed": 1, **steps}


def random_folder(folder: Path) -> Path:
    """Write a full-size Stable Diffusion 1.5 of random weights in diffusers' layout, and return its folder."""
    import torch

    from benchmarks.random_models import write_folder

    base = folder / "sd15"
    write_folder("sd15", base, torch.float16)
    # The tests' tokenizer of invented words takes seconds to load, unlike CLIP's.
    shutil.rmtree(base / "tokenizer")
    shutil.copytree(EMBEDDED / "tokenizer", base / "tokenizer")
    return base


def _site_folder(packages: list[str], folder: Path) -> Path | None:
    """Write a ``sitecustomize`` that makes ``packages`` unimportable, and return its folder; None without packages."""
    if not packages:
        return None
    lines = ["import sys", *(f"sys.modules[{package!r}] = None" for package in packages)]
    (folder / "sitecustomize.py").write_text("\n".join(lines))
    return folder


def _measure_all(
    checkouts: Mapping[str, Checkout], inputs: Mapping[str, object], repeats: int
) -> dict[str, list[StartTimes]]:
    """Measure the checkouts alternately, so that other load on the machine slows all of them."""
    rows: dict[str, list[StartTimes]] = {name: [] for name in checkouts}
    for repeat in range(repeats + 1):
        for name, checkout in checkouts.items():
            times = _measure(checkout, inputs)
            if repeat:  # the first run fills the page cache and writes .pyc files
                rows[name].append(times)
    return rows


def _measure(checkout: Checkout, inputs: Mapping[str, object]) -> StartTimes:
    started = time.perf_counter()
    with CogServer(checkout.mode, home=checkout.home, environment=checkout.environment) as server:
        server.wait_ready(600)
        ready = time.perf_counter()
        _run_job(server, inputs)
        first = time.perf_counter()
        _run_job(server, inputs)
        return StartTimes(ready - started, first - started, time.perf_counter() - first)


def _run_job(server: CogServer, inputs: Mapping[str, object]) -> None:
    """Request one job; repeat the request while the server is still busy with the last one."""
    while True:
        response = requests.post(f"{server.url}/predictions", json={"input": inputs}, timeout=3600)
        if response.status_code != 409:
            break
        time.sleep(0.02)
    body = response.json()
    if body.get("status") != "succeeded":
        raise SystemExit(f"the job failed: {body.get('error') or body}")


def _print(rows: dict[str, list[StartTimes]], options: argparse.Namespace) -> None:
    cores = len(os.sched_getaffinity(0))
    print(f"{options.server}, base {options.base}, {cores} cores, median of {options.repeats}, seconds")
    print(f"{'':12}{'READY':>10}{'first job':>16}{'second job':>16}")
    medians = {
        name: [statistics.median(column) for column in zip(*((s.ready, s.first, s.second) for s in runs), strict=True)]
        for name, runs in rows.items()
    }
    for name, (ready, first, second) in medians.items():
        print(f"{name:12}{ready:10.2f}{first:16.2f}{second:16.2f}")
    if "against" in medians:
        ready, first, _ = (b / a for a, b in zip(medians["here"], medians["against"], strict=True))
        print(f"Against the other checkout: READY {ready:.2f} times as fast, the first job {first:.2f} times.")


def _print_imports(checkout: Checkout, inputs: Mapping[str, object]) -> None:
    """Print the seconds of the imports by package, and their share of the time to the first picture."""
    command = [sys.executable, "-X", "importtime", "-c", _PREDICTION.format(inputs=dict(inputs))]
    started = time.perf_counter()
    process = subprocess.run(command, env=os.environ | checkout.environment, capture_output=True, text=True, check=True)
    whole = time.perf_counter() - started
    packages: dict[str, float] = defaultdict(float)
    for microseconds, _, module in _LINE.findall(process.stderr):
        parts = module.split(".")
        packages[".".join(parts[: 2 if parts[0] in _SPLIT else 1])] += int(microseconds) / 1e6
    total = sum(packages.values())
    print(
        f"{total:.2f} s of {whole:.2f} s to the first picture are importing, {100 * total / whole:.0f} %; by package:"
    )
    for package, seconds in sorted(packages.items(), key=lambda item: -item[1])[:25]:
        print(f"{1000 * seconds:8.0f} ms  {package}")


if __name__ == "__main__":
    main()
