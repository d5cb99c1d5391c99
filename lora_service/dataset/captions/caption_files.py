"""Captions in files: a text file per image, or a table (``captions.csv``, ``metadata.csv``, ``metadata.jsonl``)."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from lora_service.dataset.upload.source_files import SourceFile, clean_name
from lora_service.errors import PicturesError

_MAX_TEXT_BYTES = 16 * 1024 * 1024
_BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_TABLES = {"captions.csv", "caption.csv", "metadata.csv", "metadata.jsonl"}
_NAME_COLUMNS = ("file_name", "image_file", "filename", "image_path", "file", "image", "path", "name")
_CAPTION_COLUMNS = ("text", "caption", "captions", "prompt", "description")


def is_text(path: Path) -> bool:
    """Return True if the first bytes of the file are text, whatever its name."""
    with path.open("rb") as file:
        head = file.read(512)
    return b"\0" not in head or any(head.startswith(bom) for bom in _BOMS)


def read_captions(path: Path) -> tuple[str, ...]:
    """Return the captions in a text file: every line that is not empty."""
    return tuple(caption for line in _read_text(path).splitlines() if (caption := " ".join(line.split())))


def is_table(name: str) -> bool:
    """Return True if a file of this name is a table of captions."""
    return PurePosixPath(name).name.lower() in _TABLES


def read_table(file: SourceFile) -> dict[str, tuple[str, ...]]:
    """Return the captions of each image name in a table; names are relative to the table's folder.

    Raises:
        PicturesError: the table cannot be parsed, or has no column of file names or captions (code
            ``invalid_table``).
    """
    text = _read_text(file.path)
    rows = _json_rows(file.name, text) if file.name.lower().endswith(".jsonl") else _csv_rows(file.name, text)
    folder = PurePosixPath(file.name).parent
    captions: dict[str, tuple[str, ...]] = {}
    for name, caption in rows:
        key = (folder / clean_name(name)).as_posix()
        if caption.strip():
            captions[key] = (*captions.get(key, ()), " ".join(caption.split()))
    return captions


def _read_text(path: Path) -> str:
    """Decode the file by its byte-order mark, else as UTF-8, else as Windows' code page of Western Europe."""
    with path.open("rb") as file:
        data = file.read(_MAX_TEXT_BYTES)
    for bom, encoding in _BOMS.items():
        if data.startswith(bom):
            return data.decode(encoding, errors="replace")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def _json_rows(table: str, text: str) -> Iterator[tuple[str, str]]:
    """Yield file name and caption of each line of a JSON Lines file."""
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _invalid_table(f"Line {number} of {table!r} is no JSON object ({error}).") from error
        if not isinstance(row, dict):
            raise _invalid_table(f"Line {number} of {table!r} is no JSON object.")
        row = {key.lower(): value for key, value in row.items()}
        name, caption = (_first_string(row, columns) for columns in (_NAME_COLUMNS, _CAPTION_COLUMNS))
        if name is None or caption is None:
            raise _invalid_table(f'Line {number} of {table!r} needs "file_name" and "text".')
        yield name, caption


def _csv_rows(table: str, text: str) -> Iterator[tuple[str, str]]:
    """Yield file name and caption of each row of a CSV file with commas, semicolons or tabs."""
    try:
        rows = [row for row in csv.reader(io.StringIO(text), _dialect(text)) if any(row)]
    except csv.Error as error:
        raise _invalid_table(f"{table!r} is no table that can be read ({error}).") from error
    if not rows:
        return
    header = [cell.strip().lower() for cell in rows[0]]
    name_column, caption_column = (_column_index(header, columns) for columns in (_NAME_COLUMNS, _CAPTION_COLUMNS))
    if name_column is None and caption_column is None and len(header) == 2:
        name_column, caption_column = 0, 1  # a table of two columns without a header
    elif name_column is None or caption_column is None:
        raise _invalid_table(f'{table!r} needs the columns "file_name" and "text" in its first line.')
    else:
        rows = rows[1:]
    for number, row in enumerate(rows, start=1):
        if len(row) <= max(name_column, caption_column):
            raise _invalid_table(f"Row {number} of {table!r} has too few columns: {','.join(row)[:80]!r}.")
        yield row[name_column], row[caption_column]


def _dialect(text: str) -> type[csv.Dialect]:
    first_line = text.splitlines()[0] if text else ""

    class Dialect(csv.excel):
        delimiter = max(",;\t", key=first_line.count)

    return Dialect


def _column_index(header: Sequence[str], columns: Sequence[str]) -> int | None:
    return next((header.index(column) for column in columns if column in header), None)


def _first_string(row: dict[str, Any], columns: Sequence[str]) -> str | None:
    return next((row[column] for column in columns if isinstance(row.get(column), str)), None)


def _invalid_table(message: str) -> PicturesError:
    return PicturesError(message, code="invalid_table")
