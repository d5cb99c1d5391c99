"""Captions in files: a text file per image, or a table (``captions.csv``, ``metadata.jsonl``, ``meta_cap.json``)."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from lora_service.dataset.captions.text_decoding import DecodedText
from lora_service.dataset.upload.source_files import MAX_NAME, SourceFile, clean_name
from lora_service.errors import PicturesError, quote, shorten

_TABLES = {"captions.csv", "caption.csv", "metadata.csv", "metadata.jsonl", "metadata.json", "captions.json"}
_KOHYA_TABLE = re.compile(r"meta_\w+\.json")  # of kohya's scripts: meta_cap.json, meta_clean.json, meta_lat.json
_NAME_COLUMNS = ("file_name", "image_file", "filename", "image_path", "file", "image", "path", "name")
_CAPTION_COLUMNS = ("text", "caption", "captions", "prompt", "description")


def captions_in(file: SourceFile, text: str) -> tuple[str, ...]:
    """Return the captions in the text file of one image: every line that is not empty, or those in a JSON object."""
    if file.name.lower().endswith(".json"):
        return _json_captions(text)
    return tuple(caption for line in text.splitlines() if (caption := _one_line(line)))


def is_table(name: str) -> bool:
    """Return True if a file of this name is a table of captions."""
    name = PurePosixPath(name).name.lower()
    return name in _TABLES or _KOHYA_TABLE.fullmatch(name) is not None


def read_table(file: SourceFile, decoded: DecodedText) -> dict[str, tuple[str, ...]]:
    """Return the captions of each image name in a table; names are relative to the table's folder.

    Raises:
        PicturesError: the table cannot be parsed, or has no column of file names or captions (code
            ``invalid_table``).
    """
    readers = {".jsonl": _json_rows, ".json": _json_object_rows, ".csv": _csv_rows}
    path = PurePosixPath(file.name)
    captions: dict[str, list[str]] = {}
    for name, caption in readers[path.suffix.lower()](shorten(file.name), decoded.text):
        if caption := _one_line(caption):
            captions.setdefault((path.parent / clean_name(name[: MAX_NAME + 1])).as_posix(), []).append(caption)
    return {key: tuple(lines) for key, lines in captions.items()}


def _one_line(text: str) -> str:
    """Return ``text`` on one line, without the halves of characters that JSON can hold and no encoding can."""
    return " ".join(text.encode("utf-8", "replace").decode().split())


def _json_captions(text: str) -> tuple[str, ...]:
    """Return the captions in the JSON object of one image, such as kohya's and gallery-dl's; none in any other."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return ()
    caption = _caption_in(row)
    return (_one_line(caption),) if caption and caption.strip() else ()


def _caption_in(row: object) -> str | None:
    """Return the caption in a JSON value: a text, or an object with a caption or with tags."""
    if not isinstance(row, dict):
        return row if isinstance(row, str) else None
    row = {str(key).lower(): value for key, value in row.items()}
    caption, tags = _first_string(row, _CAPTION_COLUMNS), row.get("tags")
    if isinstance(tags, list):
        tags = ", ".join(tag for tag in tags if isinstance(tag, str))
    return caption if caption is not None else tags if isinstance(tags, str) else None


def _json_object_rows(table: str, text: str) -> Iterator[tuple[str, str]]:
    """Yield file name and caption of each entry of a JSON file: an object by name, as kohya's, or a list of rows."""
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _invalid_table(f"{table!r} is no JSON that can be read ({shorten(str(error))}).") from error
    if isinstance(entries, dict):
        yield from ((name, caption) for name, row in entries.items() if (caption := _caption_in(row)) is not None)
        return
    for number, row in enumerate(entries if isinstance(entries, list) else [None], start=1):
        yield _name_and_caption(row, f"Entry {number} of {table!r}")


def _json_rows(table: str, text: str) -> Iterator[tuple[str, str]]:
    """Yield file name and caption of each line of a JSON Lines file."""
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _invalid_table(f"Line {number} of {table!r} is no JSON object ({shorten(str(error))}).") from error
        yield _name_and_caption(row, f"Line {number} of {table!r}")


def _name_and_caption(row: object, place: str) -> tuple[str, str]:
    """Return file name and caption of a row of JSON."""
    if not isinstance(row, dict):
        raise _invalid_table(f"{place} is no JSON object.")
    row = {key.lower(): value for key, value in row.items()}
    name, caption = _first_string(row, _NAME_COLUMNS), _caption_in(row)
    if name is None or caption is None:
        raise _invalid_table(f'{place} needs "file_name" and "text".')
    return name, caption


def _csv_rows(table: str, text: str) -> Iterator[tuple[str, str]]:
    """Yield file name and caption of each row of a CSV file with commas, semicolons or tabs."""
    try:
        rows = [row for row in csv.reader(io.StringIO(text), _dialect(text)) if any(row)]
    except csv.Error as error:
        raise _invalid_table(f"{table!r} is no table that can be read ({shorten(str(error))}).") from error
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
            raise _invalid_table(f"Row {number} of {table!r} has too few columns: {quote(','.join(row)[:80])}.")
        yield row[name_column], row[caption_column]


def _dialect(text: str) -> type[csv.Dialect]:
    first_line = text.split("\n", 1)[0]

    class Dialect(csv.excel):
        delimiter = max(",;\t", key=first_line.count)

    return Dialect


def _column_index(header: Sequence[str], columns: Sequence[str]) -> int | None:
    return next((header.index(column) for column in columns if column in header), None)


def _first_string(row: Mapping[str, Any], columns: Sequence[str]) -> str | None:
    return next((row[column] for column in columns if isinstance(row.get(column), str)), None)


def _invalid_table(message: str) -> PicturesError:
    return PicturesError(message, code="invalid_table")
