"""Drawn class pictures on disk, kept between jobs.

    <key>/<seed>.png    the key is a hash of all that the picture depends on beside its seed

A picture appears by a rename of a complete file. Those used longest ago go first.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lora_service.whole_files import whole_file


@dataclass(frozen=True)
class ClassImageCache:
    """A folder of pictures, made when it is needed.

    Args:
        max_bytes: most bytes of all pictures; 0 keeps none.
    """

    folder: Path
    max_bytes: int

    def find(self, key: str, seed: int) -> Image.Image | None:
        """Return a picture; None if it is not there, or damaged."""
        path = self._path(key, seed)
        try:
            with Image.open(path) as image:
                picture = image.convert("RGB")
        except (OSError, SyntaxError):  # Pillow raises the latter at a broken PNG
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return picture

    def store(self, key: str, seed: int, image: Image.Image) -> None:
        """Keep a picture.

        Raises:
            OSError: it cannot be written.
        """
        if not self.max_bytes:
            return
        path = self._path(key, seed)
        with whole_file(path) as part:
            image.save(part, "PNG")

    def trim(self, kept: Collection[str]) -> None:
        """Remove the pictures that were used longest ago, but for those of the keys ``kept``, until the rest fits."""
        pictures = []
        for path in self.folder.glob("*/*"):
            with contextlib.suppress(FileNotFoundError):  # another job removes too
                pictures.append((path.stat().st_mtime, path.stat().st_size, path))
        excess = sum(size for _, size, _ in pictures) - self.max_bytes
        for _, size, path in sorted(pictures):
            if excess <= 0:
                return
            if path.parent.name not in kept:
                with contextlib.suppress(OSError):
                    path.unlink()
                    excess -= size
                    path.parent.rmdir()  # which fails while there are others

    def _path(self, key: str, seed: int) -> Path:
        return self.folder / key / f"{seed}.png"
