"""The run folder of a training on a worker's machine, kept with the gateway, whose blob store outlives the machine."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx

from lora_service.file_chunks import read_chunks
from lora_service.whole_files import whole_file

_log = logging.getLogger(__name__)
_PAUSE_SECONDS = 1.0  # between two looks at the folder
_CLOSE_SECONDS = 60.0  # for the last one, while the gateway does not answer
_TIMEOUT = httpx.Timeout(30.0, write=300.0)
_LEFT_OUT = ("unpacked", "class-pictures", "trackers", "save", "stop")
"""What a training makes anew, and the wishes, which come from the gateway."""
_RECORD = "run.json"
Mark = tuple[int, int]


class RunMirror:
    """Copies what a training writes to the gateway, and the gateway's wishes into its folder.

    Args:
        folder: the run folder.
        link: where the gateway keeps it, in this attempt at the job alone.
    """

    def __init__(self, folder: Path, link: str) -> None:
        self._folder, self._link = folder, link
        self._client = httpx.Client(trust_env=False, timeout=_TIMEOUT)
        self._kept: dict[str, Mark] = {}
        self._asked: set[str] = set()
        self._is_given_up = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def restore(self) -> None:
        """Bring what the gateway has of the folder here; what is here already is removed.

        Raises:
            httpx.HTTPError: it cannot be had.
            OSError: it cannot be written.
            ValueError: a name leads out of the folder.
        """
        shutil.rmtree(self._folder, ignore_errors=True)
        answer = self._client.get(self._link)
        answer.raise_for_status()
        for file in answer.json()["files"]:
            path = self._folder / file["path"]
            if not path.resolve().is_relative_to(self._folder.resolve()):
                raise ValueError(f"{file['path']!r} is not in the folder")
            with (
                whole_file(path) as part,
                part.open("wb") as target,
                self._client.stream("GET", file["url"]) as content,
            ):
                content.raise_for_status()
                for chunk in content.iter_bytes():
                    target.write(chunk)
            self._kept[file["path"]] = _mark(path)

    def start(self) -> None:
        """Begin to copy."""
        self._thread.start()

    def close(self) -> None:
        """Copy what is left, and remove the folder."""
        self._stop.set()
        self._thread.join()
        end = time.monotonic() + _CLOSE_SECONDS
        while not self._is_given_up and not self._copied() and time.monotonic() < end:
            time.sleep(_PAUSE_SECONDS)
        self._client.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self) -> None:
        while not self._is_given_up and not self._stop.wait(_PAUSE_SECONDS):
            self._copied()

    def _copied(self) -> bool:
        """Copy what is new; returns False if the gateway could not be told of all of it."""
        try:
            self.copy()
        except httpx.HTTPStatusError as error:
            # 410: the job has ended, or was begun again elsewhere.
            self._is_given_up = error.response.status_code in (403, 410)
            _log.warning("the run folder %s is not kept: %s", self._folder.name, error.response.text[:300])
            return error.response.status_code == 413
        except (httpx.HTTPError, OSError) as error:
            _log.warning("the run folder %s is not kept yet: %s", self._folder.name, error)
            return False
        return True

    def copy(self) -> None:
        """Send what is new, then say what is there, and take wishes.

        ``run.json`` goes last: when it says that the training has ended, the file that came of it has to be there.

        Raises:
            httpx.HTTPError: the gateway does not take it.
        """
        present = dict(self._files())
        for name in sorted(present, key=lambda each: (each == _RECORD, each)):
            if self._kept.get(name) != present[name]:
                self._send(name)
                self._kept[name] = present[name]
        taken = [wish for wish in self._asked if not (self._folder / wish).exists()]
        answer = self._client.post(self._link, json={"present": sorted(present), "taken": taken})
        answer.raise_for_status()
        self._kept = {name: mark for name, mark in self._kept.items() if name in present}
        self._asked.difference_update(taken)
        self._ask(answer.json()["wishes"])

    def _ask(self, wishes: list[str]) -> None:
        for wish in wishes:
            if wish in ("save", "stop") and wish not in self._asked and self._folder.is_dir():
                (self._folder / wish).touch()
                self._asked.add(wish)

    def _send(self, name: str) -> None:
        try:
            file = (self._folder / name).open("rb")
        except FileNotFoundError:
            return  # a checkpoint that was replaced
        with file:
            answer = self._client.put(f"{self._link}/{quote(name)}", content=read_chunks(file))
        answer.raise_for_status()

    def _files(self) -> Iterator[tuple[str, Mark]]:
        """Yield the files that are whole."""
        for path in self._folder.rglob("*"):
            name = path.relative_to(self._folder)
            if name.parts[0] in _LEFT_OUT or path.name.startswith(".") or path.suffix == ".part":
                continue
            try:
                if path.is_file():
                    yield name.as_posix(), _mark(path)
            except FileNotFoundError:
                continue


def _mark(path: Path) -> Mark:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size
