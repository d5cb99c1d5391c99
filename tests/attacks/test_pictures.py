"""Pictures that cost much more than their bytes: each is left out by name, and the others are used."""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_service.dataset.load import load_dataset
from lora_service.dataset.options import DatasetOptions
from tests.dataset.images.test_decoder_process import many_scans
from tests.dataset.picture_makers import png, zipped

MEBIBYTE = 1024**2
COLORS = {"grey": 0, "RGB": 2, "RGBA": 6}
CHANNELS = {"grey": 1, "RGB": 3, "RGBA": 4}


def large_png(width: int, height: int, color: str = "grey", bits: int = 8) -> bytes:
    """Return a PNG of zeros, row by row: a thousandth of what it takes to decode."""
    row = bytes(1 + width * CHANNELS[color] * bits // 8)
    packer = zlib.compressobj(1)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, bits, COLORS[color], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "2,500 scans": (lambda: many_scans(2500), ""),  # 4 to 44 s, by the machine; the limit is 30 s
    "80,000 scans": (lambda: many_scans(80_000), "decode_timeout"),
    "120 megapixels of 16-bit grey": (lambda: large_png(12_000, 10_000, "grey", 16), ""),
    "120 megapixels of RGBA": (lambda: large_png(12_000, 10_000, "RGBA"), ""),
    "120 megapixels of 16-bit RGBA": (lambda: large_png(12_000, 10_000, "RGBA", 16), ""),
    "40,000,000 × 1": (lambda: large_png(40_000_000, 1), "too_narrow"),
    "1 × 40,000,000": (lambda: large_png(1, 40_000_000), "too_narrow"),
    "10^9 pixels declared": (lambda: large_png(100, 100).replace(struct.pack(">II", 100, 100), b"\0\0\x80\0" * 2, 1),
                             ""),
}  # fmt: skip


def peak() -> int:
    """Return the largest resident memory of this process since :func:`reset_peak`, in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


@pytest.mark.campaign
@pytest.mark.attack("picture bombs (G4)")
@pytest.mark.parametrize("copies", [1, 4])
@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_takes_neither_memory_nor_time(kind: str, copies: int, tmp_path: Path) -> None:
    make, code = BOMBS[kind]
    bomb = make()
    members = {"good.png": png(1)} | {f"bomb {number}.png": bomb + bytes(number) for number in range(copies)}
    (tmp_path / "upload.zip").write_bytes(zipped(members))
    reset_peak()
    before, started = peak(), time.monotonic()
    report = load_dataset(
        tmp_path / "upload.zip", DatasetOptions(resolution=64, task="object"), tmp_path / "job"
    ).report
    assert "good.png" in [image.name for image in report.used]
    skipped = {file.name: file.code for file in report.skipped}
    if code:
        assert skipped == {f"bomb {number}.png": code for number in range(copies)}
    assert peak() - before < 1024
    assert time.monotonic() - started < 45 * copies
