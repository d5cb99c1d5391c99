"""Measure the time of a new inference server to READY and to its first picture, and the share of the imports.

    python -m benchmarks.cold_start [--base embedded|random-sd15|FOLDER] [--repeats 3] [--side PIXELS] [--steps N]
    python -m benchmarks.cold_start --against FOLDER     # alternates with another checkout, and prints the ratio
    python -m benchmarks.cold_start --without peft       # hides an installed package
    python -m benchmarks.cold_start --imports            # python -X importtime of the same code, by package

Each run is a new process: Cog's server from its start to READY, then pictures over HTTP, the first and the second.
The files are in the page cache after the first run, so disks are not measured. ``random-sd15`` is a full-size
Stable Diffusion 1.5 of random weights in half precision, written to a temporary folder first.
"""

from __future__ import annotations

import argparse
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
from lora_service.serving.server import CogServer

_PREDICTION = """
from lora_service.services.inference_service import InferenceService

InferenceService().run({inputs!r})
"""
_LINE = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \|\s*(\S+)")
_SPLIT = ("torch", "diffusers", "transformers", "lora_service")
"""Large packages, whose subpackages are listed separately."""


@dataclass(frozen=True)
class StartTimes:
    """Seconds of one run: from the process's start to READY and to the first picture, and for the second picture."""

    ready: float
    first: float
    second: float


@dataclass(frozen=True)
class Checkout:
    """A checkout, and the environment variables of its processes."""

    home: Path
    environment: Mapping[str, str]

    @staticmethod
    def of(home: Path, base: str, site_folder: Path | None = None) -> Checkout:
        """Return the checkout at ``home``; a ``sitecustomize`` in ``site_folder`` takes precedence."""
        python_path = os.pathsep.join(str(folder) for folder in (site_folder, home) if folder)
        return Checkout(home, {"BASE_MODEL": base, "PYTHONPATH": python_path})


def main() -> None:
    """Print one table."""
    options = _options()
    inputs = {"prompt": "a red star", "seed": 1, "num_inference_steps": options.steps}
    inputs |= {"width": options.side, "height": options.side}
    inputs = {name: value for name, value in inputs.items() if value is not None}
    with tempfile.TemporaryDirectory() as folder:
        base = str(random_folder(Path(folder))) if options.base == "random-sd15" else options.base
        here = Checkout.of(entries.HOME, base, _site_folder(options.without, Path(folder)))
        if options.imports:
            _print_imports(here, inputs)
            return
        checkouts = {"here": here}
        if options.against:
            checkouts["against"] = Checkout.of(options.against.resolve(), base)
        _print(_measure_all(checkouts, inputs, options.repeats), options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the time from a process's start to its first picture.")
    parser.add_argument("--base", default="embedded", help="as BASE_MODEL, or random-sd15")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", type=int, help="side of the pictures; default: the base's")
    parser.add_argument("--steps", type=int, help="steps of the sampler; default: the base's")
    parser.add_argument("--against", type=Path, help="another checkout, measured alternately with this one")
    parser.add_argument(
        "--without", action="append", default=[], metavar="PACKAGE", help="package to hide in this checkout's runs"
    )
    parser.add_argument("--imports", action="store_true", help="show the time of the imports instead")
    return parser.parse_args()


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
    with CogServer("predict", home=checkout.home, environment=checkout.environment) as server:
        server.wait_ready(600)
        ready = time.perf_counter()
        _draw(server, inputs)
        first = time.perf_counter()
        _draw(server, inputs)
        return StartTimes(ready - started, first - started, time.perf_counter() - first)


def _draw(server: CogServer, inputs: Mapping[str, object]) -> None:
    """Request one picture; repeat the request while the server is still busy with the last one."""
    while True:
        response = requests.post(f"{server.url}/predictions", json={"input": inputs}, timeout=3600)
        if response.status_code != 409:
            break
        time.sleep(0.02)
    body = response.json()
    if body.get("status") != "succeeded":
        raise SystemExit(f"the server drew nothing: {body.get('error') or body}")


def _print(rows: dict[str, list[StartTimes]], options: argparse.Namespace) -> None:
    print(f"Base {options.base}, {len(os.sched_getaffinity(0))} cores, median of {options.repeats}, seconds")
    print(f"{'':12}{'READY':>10}{'first picture':>16}{'second picture':>16}")
    medians = {
        name: [statistics.median(column) for column in zip(*((s.ready, s.first, s.second) for s in runs), strict=True)]
        for name, runs in rows.items()
    }
    for name, (ready, first, second) in medians.items():
        print(f"{name:12}{ready:10.2f}{first:16.2f}{second:16.2f}")
    if "against" in medians:
        ready, first, _ = (b / a for a, b in zip(medians["here"], medians["against"], strict=True))
        print(f"Against the other checkout: READY {ready:.2f} times as fast, the first picture {first:.2f} times.")


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
