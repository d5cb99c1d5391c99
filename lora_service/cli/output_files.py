"""Files that commands write: one that exists is kept unless ``--force`` is given, and an input is never overwritten."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

from lora_service.cli.field_options import GroupedOption
from lora_service.errors import InputError

CommandFunction = TypeVar("CommandFunction", bound=Callable[..., Any])


def force_option(group: str = "Other options") -> Callable[[CommandFunction], CommandFunction]:
    """Return the decorator that adds ``--force``."""
    text = "Overwrite the output if it exists; an input is never overwritten."
    return click.option("--force", is_flag=True, cls=GroupedOption, group=group, help=text)


def check_output(path: Path, *, force: bool, inputs: Iterable[Path] = (), option: str = "--output") -> None:
    """Check before the work, not after it, that ``path`` can be written.

    Args:
        force: whether a file that exists may be overwritten.
        inputs: the files and folders that the command reads.

    Raises:
        InputError: it is a folder (code ``is_folder``), one of ``inputs`` (``is_input``), a file that exists
            (``exists``), or cannot be written (``not_writable``).
    """
    if path.is_dir():
        raise InputError(option, str(path), f"a file, like {path / 'name'}{path.suffix}", code="is_folder")
    for each in inputs:
        if path.exists() and _exists(each) and _is_in(path.resolve(), each.resolve()):
            raise InputError(option, str(path), f"another file than the input {each}", code="is_input")
    if path.exists() and not force:
        raise InputError(option, str(path), "a new file, or --force must be given to overwrite it", code="exists")
    check_folder(path.parent, option)


def check_folder(folder: Path, option: str = "--output") -> None:
    """Check that files can be written to ``folder``, which may not exist yet.

    Raises:
        InputError: they cannot (code ``not_writable``).
    """
    nearest = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        expected = f"a folder that can be written ({error.strerror}: {nearest})"
        raise InputError(option, str(folder), expected, code="not_writable") from error


def free_path(path: Path) -> Path:
    """Return ``path``, or the first of ``name-2``, ``name-3`` … beside it that does not exist.

    A name that ends in a number already is counted up: ``picture-1`` to ``picture-2``.
    """
    numbered = re.fullmatch(r"(.+)-(\d{1,9})", path.stem)
    stem, number = (numbered[1], int(numbered[2])) if numbered else (path.stem, 1)
    candidate = path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{stem}-{number}{path.suffix}")
    return candidate


def _is_in(path: Path, source: Path) -> bool:
    """Return True if the file ``path`` is ``source``, by any name, or lies in that folder."""
    return path.samefile(source) or (source.is_dir() and path.is_relative_to(source))


def _exists(source: Path) -> bool:
    """Return True if ``source`` exists; a link is no path, and may be too long for one."""
    try:
        return source.exists()
    except OSError:
        return False
