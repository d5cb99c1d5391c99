"""Captions of many pictures in one file: ``captions.csv``, ``metadata.csv``, ``metadata.jsonl``."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from lora_service.dataset.captions.text_files import read_text
from lora_service.dataset.upload.archives import SourceFile
from lora_service.dataset.upload.member_names import clean_name
from lora_service.errors import PicturesError

_TABLES = {"captions.csv", "caption.csv", "metadata.csv", "metadata.jsonl"}
_NAME_COLUMNS = ("file_name", "image_file", "filename", "image_path", "file", "image", "path", "name")
_TEXT_COLUMNS = ("text", "caption", "captions", "prompt", "description")


def is_table(name: str) -> bool:
    """Whether a file of this name is a table of captions."""
    return PurePosixPath(name).name.lower() in _TABLES


def read_table(file: SourceFile) -> dict[str, tuple[str, ...]]:
    """Captions by picture name, which stands relative to the table's own folder.

    Raises:
        PicturesError: the table cannot be read, or has no column of file names or captions.
    """
    text = read_text(file.path)
    rows = _json_rows(file.name, text) if file.name.lower().endswith(".jsonl") else _csv_rows(file.name, text)
    folder = PurePosixPath(file.name).parent
    captions: dict[str, tuple[str, ...]] = {}
    for name, caption in rows:
        key = (folder / clean_name(name)).as_posix()
        if caption.strip():
            captions[key] = (*captions.get(key, ()), " ".join(caption.split()))
    return captions


def _json_rows(table: str, text: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise PicturesError(f"Line {number} of {table!r} is no JSON object ({error}).") from error
        if not isinstance(row, dict):
            raise PicturesError(f"Line {number} of {table!r} is no JSON object.")
        row = {key.lower(): value for key, value in row.items()}
        name, caption = (_first(row, columns) for columns in (_NAME_COLUMNS, _TEXT_COLUMNS))
        if name is None or caption is None:
            raise PicturesError(f'Line {number} of {table!r} needs "file_name" and "text".')
        yield name, caption


def _csv_rows(table: str, text: str) -> Iterator[tuple[str, str]]:
    try:
        rows = [row for row in csv.reader(io.StringIO(text), _dialect(text)) if any(row)]
    except csv.Error as error:
        raise PicturesError(f"{table!r} is no table that can be read ({error}).") from error
    if not rows:
        return
    header = [cell.strip().lower() for cell in rows[0]]
    name_column, text_column = (_position(header, columns) for columns in (_NAME_COLUMNS, _TEXT_COLUMNS))
    if name_column is None and text_column is None and len(header) == 2:
        name_column, text_column = 0, 1  # a table of two columns without a header
    elif name_column is None or text_column is None:
        raise PicturesError(f'{table!r} needs the columns "file_name" and "text" in its first line.')
    else:
        rows = rows[1:]
    for number, row in enumerate(rows, start=1):
        if len(row) <= max(name_column, text_column):
            raise PicturesError(f"Row {number} of {table!r} has too few columns: {','.join(row)[:80]!r}.")
        yield row[name_column], row[text_column]


def _dialect(text: str) -> type[csv.Dialect]:
    first = text.splitlines()[0] if text else ""

    class Dialect(csv.excel):
        delimiter = max(",;\t", key=first.count)

    return Dialect


def _position(header: Sequence[str], columns: Sequence[str]) -> int | None:
    return next((header.index(column) for column in columns if column in header), None)


def _first(row: dict[str, Any], columns: Sequence[str]) -> str | None:
    return next((row[column] for column in columns if isinstance(row.get(column), str)), None)
