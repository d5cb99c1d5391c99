"""Measure the time and memory to load 200 photographs of 12 megapixels as a dataset.

The baseline is to decode the same files with Pillow, in as many threads as there are cores.

    python -m benchmarks.read_pictures [COUNT]
"""

from __future__ import annotations

import io
import os
import resource
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from lora_service.dataset.load import load_dataset
from lora_service.dataset.options import DatasetOptions

SIZE = (4032, 3024)


def photograph() -> bytes:
    """Return a JPEG with the detail and the 3 to 4 megabytes of a phone's photograph."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(SIZE, Image.Resampling.BICUBIC)
    grain = Image.fromarray(rng.integers(0, 256, (SIZE[1] // 2, SIZE[0] // 2, 3), dtype=np.uint8)).resize(SIZE)
    buffer = io.BytesIO()
    Image.blend(image, grain, 0.15).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_zip(path: Path, count: int) -> None:
    """Write ``count`` photographs that differ in a comment, so that none is dropped as a duplicate."""
    data = photograph()
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(count):
            comment = f"{number:06}".encode()
            marker = b"\xff\xfe" + (2 + len(comment)).to_bytes(2, "big")
            archive.writestr(f"{number:03}.jpg", data[:2] + marker + comment + data[2:])


def decode_all(path: Path) -> float:
    """Return the seconds in which Pillow decodes all pictures of the zip at ``path``."""
    start = time.perf_counter()
    with zipfile.ZipFile(path) as archive, ThreadPoolExecutor(os.cpu_count()) as workers:
        list(workers.map(lambda name: Image.open(io.BytesIO(archive.read(name))).load() and None, archive.namelist()))
    return time.perf_counter() - start


def processor_seconds() -> float:
    """Return the processor time of this process and of its living children, which decode."""
    children = [name for task in Path("/proc/self/task").iterdir() for name in (task / "children").read_text().split()]
    stats = [Path("/proc", name, "stat").read_text().rpartition(")")[2].split() for name in ("self", *children)]
    return sum(int(field) for stat in stats for field in stat[11:15]) / os.sysconf("SC_CLK_TCK")


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_zip(folder / "upload.zip", count)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        for task, buckets in (("object", False), ("object", True), ("face", False)):
            options = DatasetOptions(resolution=512, task=task, aspect_ratio_buckets=buckets)  # type: ignore[arg-type]
            start, start_cpu = time.perf_counter(), processor_seconds()
            dataset = load_dataset(folder / "upload.zip", options, folder / f"{task}{buckets}")
            seconds, cpu = time.perf_counter() - start, processor_seconds() - start_cpu
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            kind = f"{task}, {'buckets' if buckets else 'squares'}"
            print(f"{kind}: {len(dataset.images)} pictures, {seconds:.1f} s, {cpu:.1f} s of CPU, peak {peak} MiB")
        start_cpu = processor_seconds()
        seconds = decode_all(folder / "upload.zip")
        print(f"decoding alone: {seconds:.1f} s, {processor_seconds() - start_cpu:.1f} s of CPU; before: {before} MiB")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
