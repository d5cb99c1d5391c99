"""The two entries: which file and which name in it Cog calls."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lora_service.errors import ServingError

Mode = Literal["predict", "train"]

HOME = Path(__file__).resolve().parents[2]
"""Where the entries lie: beside the package, as in the repository and in the Cog images."""

_NAMES: dict[Mode, tuple[str, str]] = {"predict": ("predict.py", "Predictor"), "train": ("train.py", "train")}


@dataclass(frozen=True)
class EntryPoint:
    """A file and the class or function in it that does the work."""

    path: Path
    name: str

    @property
    def reference(self) -> str:
        """As Cog's ``run:`` and ``train:`` name it; an absolute path is accepted as well as a relative one."""
        return f"{self.path}:{self.name}"


def find(mode: Mode, folder: Path = HOME) -> EntryPoint:
    """The entry of a mode.

    Raises:
        ServingError: the folder does not hold the file.
    """
    file, name = _NAMES[mode]
    path = folder.resolve() / file
    if not path.is_file():
        raise ServingError(
            f"The entry {file} is not in {str(folder)!r}: serve from a clone of the repository, "
            "where it lies beside the package lora_service (pip install -e .)."
        )
    return EntryPoint(path, name)
