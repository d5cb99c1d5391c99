"""A file that an archive's reader cannot be talked into reading at once, or without end."""

from __future__ import annotations

import io
from typing import IO

from lora_service.errors import PicturesError
from lora_service.settings import MEBIBYTE

MAX_READ = 8 * MEBIBYTE


class GuardedFile(io.RawIOBase):
    """``file``, readable up to ``limit`` bytes from its start and by ``MAX_READ`` bytes at a time.

    Readers of zip and tar files take whole directories and headers in one read, of the size that the file
    declares; a few kilobytes of archive can declare gigabytes.
    """

    def __init__(self, file: IO[bytes], limit: int) -> None:
        self._file = file
        self._limit = limit
        self.last = b""
        """What the last read gave."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_SET and offset > self._limit:
            raise PicturesError("The archive would unpack to more than is accepted.")
        return self._file.seek(offset, whence)

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = MAX_READ + 1 if size is None or size < 0 else min(size, MAX_READ + 1)
        self.last = self._file.read(wanted)
        if len(self.last) > MAX_READ:
            raise PicturesError("The archive declares more files, or longer names, than any set of pictures has.")
        return self.last
