"""Verified files on disk, shared by all processes of a machine.

    objects/<sha256>.safetensors    whole, checked files, named by what is in them
    entries/<cache key>.json        which object a source led to, and the server's word for its version
    partial/<cache key>.part        what is being downloaded, and what a killed process left of it
    locks/                          one per entry, held while it is fetched, and one for the folder

Everything appears by a rename of something complete, so a process may be killed at any moment: what is left is
at worst a partial file, which the next download goes on with or begins again. Locks are the kernel's and end
with their process.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from lora_service.downloads.http.partial import PartialFile
from lora_service.downloads.verify import sha256_of

_ABANDONED = 24 * 3600.0
"""Seconds after which a partial file that nobody works on is thrown away."""


@dataclass(frozen=True)
class CachedFile:
    """What a source led to.

    Attributes:
        key: the source's cache key.
        link: the link as messages may quote it.
        sha256: names the object.
        size: in bytes.
        etag, last_modified: the server's word for this version, or ''.
        private: whether a token opened it; then it is given to nobody without asking the server again.
        checked: when the server last said that this is the newest, in seconds since 1970.
    """

    key: str
    link: str
    sha256: str
    size: int
    etag: str = ""
    last_modified: str = ""
    private: bool = False
    checked: float = 0.0


class Cache:
    """The folder, and what may be kept in it.

    Args:
        folder: made when it is needed.
        max_bytes: the objects' size in all; the least recently used go when it is exceeded.
        grace: seconds for which a used object is kept whatever its size, so that it can be opened.
    """

    def __init__(self, folder: Path, max_bytes: int, grace: float = 60.0) -> None:
        self.folder = folder
        self._max_bytes, self._grace = max_bytes, grace
        self._objects, self._entries = folder / "objects", folder / "entries"
        self._partial, self._locks = folder / "partial", folder / "locks"

    def lock(self, key: str) -> FileLock:
        """The lock to hold while an entry is fetched; a new object each time, so that threads exclude each other."""
        self._locks.mkdir(parents=True, exist_ok=True)
        return FileLock(self._locks / f"{key}.lock")

    def partial(self, key: str) -> PartialFile:
        """What is there of an entry that is being fetched; hold its lock."""
        self._partial.mkdir(parents=True, exist_ok=True)
        return PartialFile(self._partial / f"{key}.part")

    def find(self, key: str) -> CachedFile | None:
        """The entry of a source when its object is there and whole."""
        entry = self._read(self._entries / f"{key}.json")
        return entry if entry and self._is_whole(entry) else None

    def use(self, entry: CachedFile) -> Path | None:
        """The object's path, marked as used just now; None when it was thrown out meanwhile."""
        with self._changing():
            if not self._is_whole(entry):
                return None
            path = self._object(entry.sha256)
            os.utime(path)
            return path

    def store(self, entry: CachedFile, partial: PartialFile) -> Path:
        """Keep a checked file; ``sha256`` and ``size`` of the entry are filled in. Hold the entry's lock."""
        entry = replace(entry, sha256=sha256_of(partial.path), size=partial.size)
        path = self._object(entry.sha256)
        self._objects.mkdir(parents=True, exist_ok=True)
        partial.sync()
        with self._changing():
            partial.move_to(path)
            os.utime(path)
            self._write(entry)
            self._make_room()
        return path

    def renew(self, entry: CachedFile, *, private: bool) -> None:
        """Note that the server has just confirmed an entry, and whether it wanted a token for that."""
        with self._changing():
            self._write(replace(entry, checked=time.time(), private=private))

    def entries(self) -> list[CachedFile]:
        """All whole entries, the last used first."""
        found = [self._read(path) for path in sorted(self._entries.glob("*.json"))]
        whole = [entry for entry in found if entry and self._is_whole(entry)]
        return sorted(whole, key=self.used, reverse=True)

    def used(self, entry: CachedFile) -> float:
        """When an entry's object was last used, in seconds since 1970."""
        try:
            return self._object(entry.sha256).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def size(self) -> int:
        """Bytes of all objects."""
        return sum(path.stat().st_size for path in self._objects.glob("*.safetensors"))

    def clear(self) -> int:
        """Throw out everything that nobody is fetching just now; the number of files that went."""
        with self._changing():
            gone = list(self._objects.glob("*.safetensors"))
            for path in (*self._entries.glob("*"), *gone):
                path.unlink(missing_ok=True)
            self._sweep(older_than=0.0)
        return len(gone)

    def _make_room(self) -> None:
        """Throw out the least recently used objects until the rest fits; hold the folder's lock."""
        objects = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in self._objects.iterdir())
        excess = sum(size for _, size, _ in objects) - self._max_bytes
        for used, size, path in objects[:-1]:  # never the one that was just stored
            if excess <= 0 or time.time() - used < self._grace:
                break
            path.unlink()
            excess -= size
        for path in self._entries.glob("*.json"):
            entry = self._read(path)
            if entry is None or not self._is_whole(entry):
                path.unlink(missing_ok=True)
        self._sweep(_ABANDONED)

    def _sweep(self, older_than: float) -> None:
        for path in self._partial.glob("*.part"):
            if time.time() - path.stat().st_mtime < older_than:
                continue
            with contextlib.suppress(Timeout), self.lock(path.stem).acquire(timeout=0):
                PartialFile(path).discard()

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the folder's lock, for as long as a few file names change."""
        with self.lock("cache"):
            yield

    def _object(self, sha256: str) -> Path:
        return self._objects / f"{sha256}.safetensors"

    def _is_whole(self, entry: CachedFile) -> bool:
        try:
            return self._object(entry.sha256).stat().st_size == entry.size
        except FileNotFoundError:
            return False

    def _write(self, entry: CachedFile) -> None:
        self._entries.mkdir(parents=True, exist_ok=True)
        path = self._entries / f"{entry.key}.json"
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(asdict(entry), indent=1))
        temporary.replace(path)

    def _read(self, path: Path) -> CachedFile | None:
        try:
            return CachedFile(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return None  # none yet, or of another version of this program: fetched again, and written over
