"""Fetches the later files of a request while the first ones are fetched, read or waited for otherwise.

What is fetched here lands in the cache, where the request itself finds it when it comes to the file: a download in
progress holds the entry's lock, so that none is made twice. An error is not told here but to the request, which asks
for the file again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from lora_service.downloads.remote_file import RemoteFile
from lora_service.errors import LinkError

_THREADS = 2

Fetch = Callable[[RemoteFile, threading.Event], object]
"""Fetches a file into the cache; ends soon after the event is set."""


class Prefetch:
    """A context in which files are fetched in the background; those that are not there at its end are given up.

    Args:
        files: of a request, in its order.
        fetch: fetches one of them.
    """

    def __init__(self, files: Sequence[RemoteFile], fetch: Fetch) -> None:
        # The request itself fetches the first one, and what is local needs none.
        self._files = iter([file for file in files[1:] if file.site not in ("local", "data")])
        self._fetch = fetch
        self._cancelled = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        for number in range(_THREADS):
            threading.Thread(target=self._work, name=f"prefetch-{number}", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._cancelled.set()

    def _work(self) -> None:
        while not self._cancelled.is_set():
            with self._lock:
                file = next(self._files, None)
            if file is None:
                return
            try:
                self._fetch(file, self._cancelled)
            except (LinkError, OSError):
                continue
