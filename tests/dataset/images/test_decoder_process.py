"""Decoding in child processes: limits of time, memory and shape, crashes, cancelling."""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lora_service.dataset.images import decoder_process
from lora_service.dataset.images.decode import decode
from lora_service.dataset.images.decoder_process import DecodeRequest, cancel_decoding, decode_apart
from lora_service.dataset.load import load_dataset
from lora_service.dataset.options import DatasetOptions, UploadLimits
from lora_service.dataset.upload.source_files import SourceFile, UnusableFileError
from tests.dataset.picture_makers import encoded, half_mask, picture, png, zipped
from tests.errors import raises

LIMITS = UploadLimits()


def request_of(data: bytes, folder: Path, limits: UploadLimits = LIMITS) -> DecodeRequest:
    path = folder / "image"
    path.write_bytes(data)
    return DecodeRequest.within(limits, SourceFile("image", path), 64, (255, 255, 255))


def many_scans(count: int, side: int = 2000) -> bytes:
    """Return a progressive JPEG of a few kilobytes a scan, whose last scan comes ``count`` times."""
    data = encoded(picture(1, (side, side)), "JPEG", progressive=True, quality=30)
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start:-2] * count + data[-2:]


def test_the_result_is_that_of_decoding_here(tmp_path: Path) -> None:
    cut_out = picture(1, (300, 200)).convert("RGBA")
    cut_out.putalpha(half_mask((300, 200)))
    request = request_of(encoded(cut_out), tmp_path)
    apart, here = decode_apart(request), decode(request.file, 64, (255, 255, 255), LIMITS.max_pixels)
    assert (apart.original, apart.warnings) == (here.original, here.warnings)
    assert apart.image.tobytes() == here.image.tobytes()
    assert apart.alpha is not None
    assert here.alpha is not None
    assert apart.alpha.tobytes() == here.alpha.tobytes()


def test_a_child_is_kept_for_the_next_picture(tmp_path: Path) -> None:
    decode_apart(request_of(png(1), tmp_path))
    idle = list(decoder_process._POOL._idle)
    with raises(UnusableFileError, code="not_an_image"):
        decode_apart(request_of(b"?", tmp_path))
    decode_apart(request_of(png(2), tmp_path))
    assert decoder_process._POOL._idle == idle


def test_a_relative_path_is_that_of_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode_apart(request_of(png(1), tmp_path))  # a child that was started in another folder
    monkeypatch.chdir(tmp_path)
    assert decode_apart(request_of(png(2), Path())).original == (96, 72)


@pytest.mark.attack("picture bombs (G4)")
def test_what_takes_too_long_is_ended_and_left_out_by_name(tmp_path: Path) -> None:
    limits = replace(LIMITS, max_decode_seconds=1)
    (tmp_path / "upload.zip").write_bytes(zipped({"a.png": png(1), "b.jpg": many_scans(3000)}))
    options = DatasetOptions(resolution=64, task="object", limits=limits)
    report = load_dataset(tmp_path / "upload.zip", options, tmp_path / "job").report
    assert [image.name for image in report.used] == ["a.png"]
    assert [(file.name, file.code) for file in report.skipped] == [("b.jpg", "decode_timeout")]


@pytest.mark.attack("picture bombs (G4)")
def test_memory_counts_by_the_bytes_of_a_pixel(tmp_path: Path) -> None:
    limits = replace(LIMITS, max_decode_bytes=256 << 20)
    sizes = {mode: encoded(Image.new(mode, (6000, 6000)), "PNG") for mode in ("L", "RGB")}
    decode_apart(request_of(sizes["L"], tmp_path, limits))
    with raises(UnusableFileError, code="too_much_memory"):
        decode_apart(request_of(sizes["RGB"], tmp_path, limits))


@pytest.mark.attack("picture bombs (G4)")
def test_large_pictures_are_decoded_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_process, "_LARGE", 1 << 20)
    calls: list[bool] = []
    original = decoder_process._Child.decode

    def record(self: Any, *arguments: Any) -> Any:
        calls.append(decoder_process._POOL._one_large.locked())
        return original(self, *arguments)

    monkeypatch.setattr(decoder_process._Child, "decode", record)
    assert decode_apart(request_of(png(1, (800, 800)), tmp_path)).original == (800, 800)
    assert calls == [False, True]


@pytest.mark.parametrize("size", [(40_000, 1), (1, 40_000), (4040, 40)])
@pytest.mark.attack("picture bombs (G4)")
def test_lines_are_no_pictures(size: tuple[int, int], tmp_path: Path) -> None:
    with raises(UnusableFileError, code="too_narrow"):
        decode_apart(request_of(encoded(Image.new("L", size)), tmp_path))


@pytest.mark.attack("picture bombs (G4)")
def test_after_a_crash_there_is_another_child(tmp_path: Path) -> None:
    decode_apart(request_of(png(1), tmp_path))
    for child in decoder_process._POOL._idle:
        child.process.kill()
        child.process.wait()
    assert decode_apart(request_of(png(1), tmp_path)).original == (96, 72)


@pytest.mark.attack("picture bombs (G4)")
def test_a_cancelled_job_does_not_wait_for_a_decoder(tmp_path: Path) -> None:
    (tmp_path / "upload.zip").write_bytes(zipped({"b.jpg": many_scans(20_000)}))

    def cancel(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, cancel)
    signal.setitimer(signal.ITIMER_REAL, 3)
    started = time.monotonic()
    options = DatasetOptions(resolution=64, task="object", limits=replace(LIMITS, max_decode_seconds=300))
    try:
        with pytest.raises(KeyboardInterrupt):
            load_dataset(tmp_path / "upload.zip", options, tmp_path / "job")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - started < 100
    assert not list((tmp_path / "job").iterdir())
    cancel_decoding()  # of nothing
