"""How long a fresh inference server takes to READY and to its first picture, and where the time goes.

    python -m benchmarks.cold_start [--base embedded|random-sd15|FOLDER] [--repeats 3] [--side PIXELS] [--steps N]
    python -m benchmarks.cold_start --against FOLDER     # beside another checkout, in turns, with the ratio
    python -m benchmarks.cold_start --without peft       # as where a package is not installed
    python -m benchmarks.cold_start --imports            # python -X importtime of the same path, by package

Each run is a new process: Cog's server from its start to READY, then pictures over HTTP, the first and the second.
The files are in the system's cache after the first run, so disks are not measured. ``random-sd15`` is a full-size
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

from lora_service.models.registry import EMBEDDED
from lora_service.serving import entries
from lora_service.serving.server import CogServer

_PATH = """
from lora_service.services.inference_service import InferenceService

InferenceService().run({inputs!r})
"""
_LINE = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \|\s*(\S+)")
_SPLIT = ("torch", "diffusers", "transformers", "lora_service")
"""Packages that are large enough to be shown by their parts."""


@dataclass(frozen=True)
class Start:
    """Seconds of one run, from the process's start; the second picture's are its own."""

    ready: float
    first: float
    second: float


@dataclass(frozen=True)
class Way:
    """A checkout, and the environment that its processes get."""

    home: Path
    environment: Mapping[str, str]

    @staticmethod
    def of(home: Path, base: str, hidden: Path | None = None) -> Way:
        """``hidden`` holds a ``sitecustomize`` that is to be found first."""
        searched = os.pathsep.join(str(folder) for folder in (hidden, home) if folder)
        return Way(home, {"BASE_MODEL": base, "PYTHONPATH": searched})


def main() -> None:
    """Prints one table."""
    options = _options()
    inputs = {"prompt": "a red star", "seed": 1, "num_inference_steps": options.steps}
    inputs |= {"width": options.side, "height": options.side}
    given = {name: value for name, value in inputs.items() if value is not None}
    with tempfile.TemporaryDirectory() as folder:
        base = str(random_folder(Path(folder))) if options.base == "random-sd15" else options.base
        here = Way.of(entries.HOME, base, _hidden(options.without, Path(folder)))
        if options.imports:
            _print_imports(here, given)
            return
        ways = {"here": here}
        if options.against:
            ways["against"] = Way.of(options.against.resolve(), base)
        _print(_runs(ways, given, options.repeats), options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time from a process's start to its first picture.")
    parser.add_argument("--base", default="embedded", help="as BASE_MODEL, or random-sd15")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", type=int, help="of the pictures; default: the base's own")
    parser.add_argument("--steps", type=int, help="of the sampler; default: the base's own")
    parser.add_argument("--against", type=Path, help="another checkout, measured in turns with this one")
    parser.add_argument(
        "--without", action="append", default=[], metavar="PACKAGE", help="here, as if it were not installed"
    )
    parser.add_argument("--imports", action="store_true", help="show where importing goes instead")
    return parser.parse_args()


def random_folder(folder: Path) -> Path:
    """A full-size Stable Diffusion 1.5 of random weights in diffusers' layout."""
    import torch

    from benchmarks.random_models import write_folder

    base = folder / "sd15"
    write_folder("sd15", base, torch.float16)
    # A tokenizer of words made up for the tests takes seconds to read, which CLIP's does not.
    shutil.rmtree(base / "tokenizer")
    shutil.copytree(EMBEDDED / "tokenizer", base / "tokenizer")
    return base


def _hidden(packages: list[str], folder: Path) -> Path | None:
    """A folder that keeps a process that searches it from finding ``packages``."""
    if not packages:
        return None
    lines = ["import sys", *(f"sys.modules[{package!r}] = None" for package in packages)]
    (folder / "sitecustomize.py").write_text("\n".join(lines))
    return folder


def _runs(ways: Mapping[str, Way], inputs: Mapping[str, object], repeats: int) -> dict[str, list[Start]]:
    """The ways take turns, so that whatever else the machine does slows all of them."""
    rows: dict[str, list[Start]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            start = _start(way, inputs)
            if repeat:  # the first fills the system's cache and writes .pyc files
                rows[name].append(start)
    return rows


def _start(way: Way, inputs: Mapping[str, object]) -> Start:
    begun = time.perf_counter()
    with CogServer("predict", home=way.home, environment=way.environment) as server:
        server.wait_ready(600)
        ready = time.perf_counter()
        _draw(server, inputs)
        first = time.perf_counter()
        _draw(server, inputs)
        return Start(ready - begun, first - begun, time.perf_counter() - first)


def _draw(server: CogServer, inputs: Mapping[str, object]) -> None:
    """One picture; a server that is still freeing its place is asked again."""
    while True:
        answer = requests.post(f"{server.url}/predictions", json={"input": inputs}, timeout=3600)
        if answer.status_code != 409:
            break
        time.sleep(0.02)
    body = answer.json()
    if body.get("status") != "succeeded":
        raise SystemExit(f"the server drew nothing: {body.get('error') or body}")


def _print(rows: dict[str, list[Start]], options: argparse.Namespace) -> None:
    print(f"Base {options.base}, {len(os.sched_getaffinity(0))} cores, median of {options.repeats}, seconds")
    print(f"{'':12}{'READY':>10}{'first picture':>16}{'second picture':>16}")
    medians = {
        name: [
            statistics.median(column) for column in zip(*((s.ready, s.first, s.second) for s in starts), strict=True)
        ]
        for name, starts in rows.items()
    }
    for name, (ready, first, second) in medians.items():
        print(f"{name:12}{ready:10.2f}{first:16.2f}{second:16.2f}")
    if "against" in medians:
        ready, first, _ = (b / a for a, b in zip(medians["here"], medians["against"], strict=True))
        print(f"Against the other checkout: READY {ready:.2f} times as fast, the first picture {first:.2f} times.")


def _print_imports(way: Way, inputs: Mapping[str, object]) -> None:
    """Seconds of importing by package, and the share of all of the path to the first picture."""
    command = [sys.executable, "-X", "importtime", "-c", _PATH.format(inputs=dict(inputs))]
    begun = time.perf_counter()
    ended = subprocess.run(command, env=os.environ | way.environment, capture_output=True, text=True, check=True)
    whole = time.perf_counter() - begun
    packages: dict[str, float] = defaultdict(float)
    for own, _, module in _LINE.findall(ended.stderr):
        parts = module.split(".")
        packages[".".join(parts[: 2 if parts[0] in _SPLIT else 1])] += int(own) / 1e6
    total = sum(packages.values())
    print(
        f"{total:.2f} s of {whole:.2f} s to the first picture are importing, {100 * total / whole:.0f} %; by package:"
    )
    for package, seconds in sorted(packages.items(), key=lambda item: -item[1])[:25]:
        print(f"{1000 * seconds:8.0f} ms  {package}")


if __name__ == "__main__":
    main()
