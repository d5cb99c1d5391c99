"""Decoding in child processes, as a small file may take a decoder hours or gigabytes, and nothing else ends it.

A child decodes one picture after the other and is kept for the next dataset. The kernel ends it when a picture takes
too long, and refuses it more memory than is allowed; then the picture is skipped, and another child started.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from PIL import Image

from lora_service.dataset.images.decode import DecodedImage, decode
from lora_service.dataset.options import UploadLimits
from lora_service.dataset.upload.source_files import SourceFile, UnusableFileError
from lora_service.settings import MEBIBYTE

_LARGE = 256 * MEBIBYTE  # pictures that need more are decoded one at a time
_PIPE_BYTES = MEBIBYTE  # larger than the default, for megabytes of pixels
_READY = b"ready\n"
_START = "from lora_service.dataset.images.decoder_process import serve; serve()"


@dataclass(frozen=True)
class DecodeRequest:
    """One picture to decode, and what it may take.

    Args:
        target_side, background, max_pixels: as of ``decode``.
        max_bytes: memory of the child.
        max_seconds: time, after which the child is ended.
    """

    file: SourceFile
    target_side: int
    background: tuple[int, int, int]
    max_pixels: int
    max_bytes: int
    max_seconds: int

    @staticmethod
    def within(
        limits: UploadLimits, file: SourceFile, target_side: int, background: tuple[int, int, int]
    ) -> DecodeRequest:
        return DecodeRequest(
            file, target_side, background, limits.max_pixels, limits.max_decode_bytes, limits.max_decode_seconds
        )

    def to_json(self, max_bytes: int) -> bytes:
        path = str(self.file.path.absolute())  # the child stays where it was started
        values = [path, self.file.name, self.target_side, self.background, self.max_pixels]
        return json.dumps([*values, max_bytes, self.max_bytes, self.max_seconds]).encode() + b"\n"


def decode_apart(request: DecodeRequest) -> DecodedImage:
    """Decode a picture in a child process.

    Raises:
        UnusableFileError: as of ``decode``; or it takes too long (code ``decode_timeout``) or too much memory
            (``too_much_memory``), or its decoder crashes (``decoder_crashed``).
    """
    return _POOL.decode(request)


def cancel_decoding() -> None:
    """End the children that are decoding now; whoever waits for one gets an ``UnusableFileError``."""
    _POOL.cancel()


class _Child:
    """A child process, and the pictures it is given one after the other."""

    def __init__(self) -> None:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        environment = {**os.environ, **threads, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pipesize=_PIPE_BYTES,
            env=environment,
        )
        if self._output.readline() != _READY:
            self.end()
            raise RuntimeError("the process that decodes pictures did not start")

    @property
    def _output(self) -> IO[bytes]:
        return cast(IO[bytes], self.process.stdout)

    def decode(self, request: DecodeRequest, max_bytes: int) -> DecodedImage:
        stdin = cast(IO[bytes], self.process.stdin)
        try:
            stdin.write(request.to_json(max_bytes))
            stdin.flush()
            reply = json.loads(self._output.readline())
            if "error" in reply:
                raise UnusableFileError(reply["error"], code=reply["code"])
            size = tuple(reply["size"])
            image = Image.frombytes("RGB", size, self._read(3 * size[0] * size[1]))
            alpha = Image.frombytes("L", size, self._read(size[0] * size[1])) if reply["alpha"] else None
        except (OSError, ValueError):  # the child was ended, so that a pipe is broken or a reply cut
            self.end()
            if self.process.returncode == -signal.SIGALRM:
                message = f"it takes more than {request.max_seconds} s to decode"
                raise UnusableFileError(message, code="decode_timeout") from None
            raise UnusableFileError("its decoder crashed", code="decoder_crashed") from None
        return DecodedImage(image, alpha, tuple(reply["original"]), tuple(reply["warnings"]))

    def _read(self, size: int) -> bytes:
        data = self._output.read(size)
        if len(data) < size:
            raise OSError
        return data

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


class _Pool:
    """Children that wait for a picture, and those that decode one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._one_large = threading.Lock()
        self._idle: list[_Child] = []
        self._busy: set[_Child] = set()

    def decode(self, request: DecodeRequest) -> DecodedImage:
        with self._child() as child:
            try:
                return child.decode(request, min(_LARGE, request.max_bytes // 2))
            except UnusableFileError as error:
                if error.code != "too_much_memory":
                    raise
        with self._one_large, self._child() as child:
            return child.decode(request, request.max_bytes // 2)

    def cancel(self) -> None:
        with self._lock:
            busy = list(self._busy)
        for child in busy:
            child.process.kill()

    @contextmanager
    def _child(self) -> Iterator[_Child]:
        with self._lock:
            child = self._idle.pop() if self._idle else None
        child = child if child and child.process.poll() is None else _Child()
        with self._lock:
            self._busy.add(child)
        try:
            yield child
        finally:
            with self._lock:
                self._busy.remove(child)
                if child.process.returncode is None:
                    self._idle.append(child)


_POOL = _Pool()


def serve() -> None:
    """Decode the pictures that standard input names, until it ends; for the child process alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops, and then this ends with its input
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not mix with the replies
    output.write(_READY)
    output.flush()
    for line in sys.stdin.buffer:
        path, name, side, background, pixels, max_bytes, limit, seconds = json.loads(line)
        with contextlib.suppress(ValueError, OSError):  # not every system has it
            resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))
        signal.setitimer(signal.ITIMER_REAL, seconds)
        reply, data = _reply(SourceFile(name, Path(path)), side, tuple(background), pixels, max_bytes)
        signal.setitimer(signal.ITIMER_REAL, 0)
        output.write(json.dumps(reply).encode() + b"\n")
        for pixels_of in data:
            output.write(pixels_of)
        output.flush()


def _reply(
    file: SourceFile, side: int, background: tuple[int, int, int], max_pixels: int, max_bytes: int
) -> tuple[dict[str, Any], list[bytes]]:
    """Return the answer for one picture, and the pixels of its image and its alpha."""
    try:
        decoded = decode(file, side, background, max_pixels, max_bytes)
        data = [part.tobytes() for part in (decoded.image, decoded.alpha) if part is not None]
    except UnusableFileError as error:
        return {"error": str(error), "code": error.code}, []
    except MemoryError:
        return {"error": "it takes too much memory to decode", "code": "decode_memory"}, []
    reply = {"size": decoded.image.size, "alpha": decoded.alpha is not None, "original": decoded.original}
    return reply | {"warnings": decoded.warnings}, data
