"""Names in archives: what they were meant to be, and which of them are refused or passed over."""

from __future__ import annotations

import re
import struct
import unicodedata
import zipfile
from pathlib import PurePosixPath

_UTF8_FLAG = 0x800
_UNICODE_PATH = 0x7075  # the extra field of Info-ZIP (APPNOTE.TXT 4.6.9): version, checksum of the other name, UTF-8
_JUNK_FOLDERS = {"__macosx", "@eadir", "$recycle.bin", "system volume information"}
_JUNK_FILES = {"thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r"}
_DRIVE = re.compile(r"[A-Za-z]:")


def zip_name(info: zipfile.ZipInfo) -> str:
    """The member's name; UTF-8 is recognised where its flag was forgotten, as many packers do.

    Names in another alphabet are read as cp437, as the format has it: wrong to look at, but the same for a picture
    and its caption.
    """
    if info.flag_bits & _UTF8_FLAG:
        return info.filename
    try:
        return (_unicode_path(info.extra) or info.filename.encode("cp437")).decode("utf-8")
    except UnicodeError:
        return info.filename


def _unicode_path(extra: bytes) -> bytes:
    """The name in UTF-8 that a zip's ``extra`` fields hold, or nothing."""
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        if kind == _UNICODE_PATH:
            return extra[9 : 4 + size]
        extra = extra[4 + size :]
    return b""


def clean_name(name: str) -> str:
    """``name`` as it is shown and matched: forward slashes, composed letters, nothing unprintable."""
    name = unicodedata.normalize("NFC", name.replace("\\", "/"))
    name = "".join(c if c.isprintable() else "?" for c in name)
    return "/".join(part for part in name.split("/") if part not in ("", ".")) or "unnamed"


def is_junk(name: str) -> bool:
    """Whether an operating system put the file there, without the person's knowing."""
    parts = [part.lower() for part in PurePosixPath(name).parts]
    return any(part.startswith("._") or part.startswith(".") or part in _JUNK_FOLDERS for part in parts) or (
        bool(parts) and parts[-1] in _JUNK_FILES
    )


def refusal(name: str) -> str:
    """Why a member of this name is refused, or ""."""
    name = name.replace("\\", "/")
    if name.startswith("/") or _DRIVE.match(name):
        return "its name is an absolute path"
    return "its name leads out of the archive" if ".." in name.split("/") else ""


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sorts "2.jpg" before "10.jpg"."""
    return [(int(part[:18]), "") if part.isdecimal() else (-1, part.lower()) for part in re.split(r"(\d+)", name)]
