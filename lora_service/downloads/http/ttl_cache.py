"""What was found out a short while ago."""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class TtlCache(Generic[Key, Value]):
    """A dictionary that forgets; safe to share between threads.

    Args:
        seconds: how long a value is remembered.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._kept: dict[Key, tuple[float, Value]] = {}
        self._lock = threading.Lock()

    def get(self, key: Key) -> Value | None:
        """The value, or None when there is none or it is too old."""
        with self._lock:
            self._forget()
            found = self._kept.get(key)
        return found[1] if found else None

    def put(self, key: Key, value: Value) -> None:
        """Remember a value from now on."""
        with self._lock:
            self._forget()
            self._kept[key] = time.monotonic(), value

    def _forget(self) -> None:
        oldest = time.monotonic() - self._seconds
        self._kept = {key: item for key, item in self._kept.items() if item[0] > oldest}
