"""Verified files on disk, shared by all processes of a machine, and values in memory that expire.

    objects/<sha256>.safetensors    whole, checked LoRAs or archives of one, named by what is in them
    entries/<cache key>.json        the object that a link led to, and the validators of its version
    partial/<cache key>.part        downloads in progress, and those of killed processes
    locks/                          one per entry, held while it is fetched, and one for the folder

Everything appears by a rename of something complete, so a process may be killed at any moment: at worst it
leaves a partial file, which the next download resumes or begins again. Locks are the kernel's and end with their
process.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
import time
from collections.abc import Hashable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from filelock import FileLock, Timeout

from lora_service.downloads.partial_file import PartialFile
from lora_service.whole_files import whole_file

_MAX_PARTIAL_AGE = 24 * 3600.0
"""Seconds after which a partial file that no process holds the lock of is removed."""

_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


@dataclass(frozen=True)
class CachedFile:
    """The entry of a link: the object that it led to.

    Attributes:
        key: the remote file's cache key.
        link: the link, redacted.
        sha256: the object's SHA-256 and name.
        size: in bytes.
        etag, last_modified: the validators of this version, or ''.
        private: whether a token opened it; then nobody gets it without asking the server again.
        checked: time of the server's last answer that this is the newest version, in seconds since 1970.
        name: the file's name as the server or the link has it, made safe.
    """

    key: str
    link: str
    sha256: str
    size: int
    etag: str = ""
    last_modified: str = ""
    private: bool = False
    checked: float = 0.0
    name: str = ""


class Cache:
    """A folder of verified files, bounded in size; the least recently used are removed first.

    Args:
        folder: made when it is needed.
        max_bytes: the objects' size in all.
        grace: seconds for which a used object is kept whatever its size, so that it can be opened.
    """

    def __init__(self, folder: Path, max_bytes: int, grace: float = 60.0) -> None:
        self.folder = folder
        self._max_bytes, self._grace = max_bytes, grace
        self._objects, self._entries = folder / "objects", folder / "entries"
        self._partial, self._locks = folder / "partial", folder / "locks"

    def lock(self, key: str) -> FileLock:
        """Return the lock to hold while an entry is fetched; a new object each time, so that it excludes threads."""
        self._locks.mkdir(parents=True, exist_ok=True)
        return FileLock(self._locks / f"{key}.lock")

    def partial(self, key: str) -> PartialFile:
        """Return the partial file of an entry; the caller holds the entry's lock."""
        self._partial.mkdir(parents=True, exist_ok=True)
        return PartialFile(self._partial / f"{key}.part")

    def find(self, key: str) -> CachedFile | None:
        """Return an entry when its object is there and complete."""
        entry = self._read(self._entries / f"{key}.json")
        return entry if entry and self._is_complete(entry) else None

    def use(self, entry: CachedFile) -> Path | None:
        """Mark the object as used just now, and return its path; None when it was removed meanwhile."""
        path = self._object_path(entry.sha256)
        try:
            with self._folder_locked():
                if not self._is_complete(entry):
                    return None
                os.utime(path)
        except OSError as error:
            if error.errno not in _READ_ONLY:
                raise
        return path if self._is_complete(entry) else None

    def discard_if_damaged(self, path: Path) -> bool:
        """Remove an object whose content is no longer what its name says; False if ``path`` is none, or is whole."""
        if path.parent != self._objects or not path.exists() or PartialFile(path).sha256() == path.stem:
            return False
        with self._folder_locked():
            path.unlink(missing_ok=True)
        return True

    def make_room(self) -> bool:
        """Remove all objects that were not used just now, and downloads that nobody goes on with; False if there
        are none."""
        with self._folder_locked():
            before = self._bytes()
            self._evict(max_bytes=0)
            return self._bytes() < before

    def store(self, entry: CachedFile, partial: PartialFile) -> Path:
        """Move a verified file into the cache, and return its path; the caller holds the entry's lock.

        ``sha256`` and ``size`` of the entry are filled in.
        """
        entry = replace(entry, sha256=partial.sha256(), size=partial.size)
        path = self._object_path(entry.sha256)
        self._objects.mkdir(parents=True, exist_ok=True)
        partial.sync()
        with self._folder_locked():
            partial.move_to(path)
            os.utime(path)
            self._write(entry)
            self._evict()
        return path

    def revalidate(self, entry: CachedFile, *, private: bool) -> None:
        """Record that the server has just confirmed an entry, and whether it required a token for that."""
        with self._folder_locked():
            self._write(replace(entry, checked=time.time(), private=private))

    def entries(self) -> list[CachedFile]:
        """Return all complete entries, the last used first."""
        entries = [self._read(path) for path in sorted(self._entries.glob("*.json"))]
        complete = [entry for entry in entries if entry and self._is_complete(entry)]
        return sorted(complete, key=self.last_used, reverse=True)

    def last_used(self, entry: CachedFile) -> float:
        """Return the time of an object's last use, in seconds since 1970."""
        try:
            return self._object_path(entry.sha256).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def size(self) -> int:
        """Return the bytes of all objects."""
        return sum(path.stat().st_size for path in self._objects.glob("*.safetensors"))

    def clear(self) -> int:
        """Remove everything but the downloads in progress, and return the number of removed files."""
        with self._folder_locked():
            objects = list(self._objects.glob("*.safetensors"))
            for path in (*self._entries.glob("*"), *objects):
                path.unlink(missing_ok=True)
            self._remove_partials(older_than=0.0)
        return len(objects)

    def _bytes(self) -> int:
        """Return the bytes of objects and of downloads in progress."""
        return sum(_size(path) for path in (*self._objects.glob("*"), *self._partial.glob("*.part")))

    def _evict(self, max_bytes: int | None = None) -> None:
        """Remove partial files that nobody writes to, then the least recently used objects, until the rest fits.

        The caller holds the folder's lock.
        """
        max_bytes = self._max_bytes if max_bytes is None else max_bytes
        if self._bytes() > max_bytes:
            self._remove_partials(older_than=0.0)
        objects = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in self._objects.glob("*"))
        excess = self._bytes() - max_bytes
        for last_used, size, path in objects[: -1 if max_bytes else None]:  # never the one that was just stored
            if excess <= 0 or time.time() - last_used < self._grace:
                break
            path.unlink()
            excess -= size
        for path in self._entries.glob("*.json"):
            entry = self._read(path)
            if entry is None or not self._is_complete(entry):
                path.unlink(missing_ok=True)
        self._remove_partials(_MAX_PARTIAL_AGE)
        self._remove_locks()

    def _remove_locks(self) -> None:
        """Remove the locks of what is no longer here; filelock takes a lock anew whose file was removed."""
        for path in self._locks.glob("*.lock"):
            key = path.stem
            if key == "cache" or (self._entries / f"{key}.json").exists() or (self._partial / f"{key}.part").exists():
                continue
            with contextlib.suppress(Timeout, OSError), self.lock(key).acquire(timeout=0):
                path.unlink(missing_ok=True)

    def _remove_partials(self, older_than: float) -> None:
        for path in self._partial.glob("*.part"):
            if time.time() - path.stat().st_mtime < older_than:
                continue
            with contextlib.suppress(Timeout), self.lock(path.stem).acquire(timeout=0):
                PartialFile(path).discard()

    @contextlib.contextmanager
    def _folder_locked(self) -> Iterator[None]:
        """Hold the folder's lock, for as long as a few file names change."""
        with self.lock("cache"):
            yield

    def _object_path(self, sha256: str) -> Path:
        return self._objects / f"{sha256}.safetensors"

    def _is_complete(self, entry: CachedFile) -> bool:
        try:
            return self._object_path(entry.sha256).stat().st_size == entry.size
        except FileNotFoundError:
            return False

    def _write(self, entry: CachedFile) -> None:
        with whole_file(self._entries / f"{entry.key}.json") as part:
            part.write_text(json.dumps(asdict(entry), indent=1))

    def _read(self, path: Path) -> CachedFile | None:
        try:
            return CachedFile(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return None  # none yet, or of another version of this program: fetched again, and overwritten


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


class TtlCache(Generic[Key, Value]):
    """A dictionary whose values expire; safe to share between threads.

    Not ``cachetools.TTLCache``: that would need a lock around it too, and a new dependency to save ten lines.

    Args:
        seconds: the age at which a value expires.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._items: dict[Key, tuple[float, Value]] = {}
        self._lock = threading.Lock()

    def get(self, key: Key) -> Value | None:
        """Return the value, or None when there is none or it has expired."""
        with self._lock:
            self._expire()
            item = self._items.get(key)
        return item[1] if item else None

    def put(self, key: Key, value: Value) -> None:
        """Store a value; its age counts from now."""
        with self._lock:
            self._expire()
            self._items[key] = time.monotonic(), value

    def _expire(self) -> None:
        oldest = time.monotonic() - self._seconds
        self._items = {key: item for key, item in self._items.items() if item[0] > oldest}
