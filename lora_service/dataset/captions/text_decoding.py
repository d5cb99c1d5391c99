"""Decoding of text files that do not say their encoding, by all the texts of an upload together."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from dataclasses import dataclass

from charset_normalizer import from_bytes

from lora_service.dataset.upload.source_files import SourceFile
from lora_service.errors import PicturesError, quote
from lora_service.settings import MEBIBYTE

_BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_UTF_16 = ["utf_16_le", "utf_16_be"]
_MULTI_BYTE = ["gb18030", "cp932", "cp949", "big5"]
_SINGLE_BYTE = ["cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "koi8_r"]
_SAMPLE_BYTES = 64 * 1024
_MIN_COHERENCE = 0.2  # share of the commonest letters of a language, below which code pages are not told apart
_MAX_ACCENTS = 0.2  # share of letters beyond ASCII in Western European languages


@dataclass(frozen=True)
class DecodedText:
    """A file's text, and the encoding that was guessed; "" where the file says it, or is UTF-8."""

    text: str
    guessed: str = ""

    @property
    def warning(self) -> str:
        return f"its caption file was read as {self.guessed}; save it as UTF-8" if self.guessed else ""


def is_text(head: bytes) -> bool:
    """Return True if a file that begins with ``head`` is text, in UTF-16 too."""
    zeros = {index % 2 for index, byte in enumerate(head) if not byte}
    return len(zeros) < 2 or any(head.startswith(bom) for bom in _BOMS)


class TextDecoder:
    """Decodes the texts of one upload; those that are not UTF-8 are taken to be in the one encoding that suits all."""

    def __init__(self, files: Iterable[SourceFile]) -> None:
        samples = []
        size = 0
        for file in files:
            data = _read(file, _SAMPLE_BYTES - size)
            if _decode_known(data, cut=True) is None:
                samples.append(data)
                size += len(data)
            if size >= _SAMPLE_BYTES:
                break
        is_utf16_possible = not any(len(sample) % 2 for sample in samples)
        self._encoding = _guess((b"" if is_utf16_possible else b"\n").join(samples)) if samples else ""

    def decode(self, file: SourceFile, max_bytes: int) -> DecodedText:
        """Decode ``file`` by its byte-order mark, else as UTF-8, else in the encoding of the upload.

        Raises:
            PicturesError: it has more than ``max_bytes`` (code ``caption_too_large``), or its encoding cannot be
                recognised (``unknown_encoding``).
        """
        data = _read(file, max_bytes + 1)
        if len(data) > max_bytes:
            limit = f"{max_bytes / 1024:.0f} KiB" if max_bytes < MEBIBYTE else f"{max_bytes / MEBIBYTE:.0f} MiB"
            message = f"{quote(file.name)} has more than the {limit} of text that are accepted."
            raise PicturesError(message, code="caption_too_large")
        text = _decode_known(data)
        if text is not None:
            return DecodedText(text)
        for encoding in (self._encoding, _guess(data)):
            try:
                if encoding:
                    return DecodedText(data.decode(encoding), encoding)
            except UnicodeDecodeError:
                continue
        message = f"{quote(file.name)} is in an encoding that cannot be recognised; save it as UTF-8."
        raise PicturesError(message, code="unknown_encoding")


def _read(file: SourceFile, size: int) -> bytes:
    with file.path.open("rb") as opened:
        return opened.read(size)


def _decode_known(data: bytes, *, cut: bool = False) -> str | None:
    """Decode ``data`` by its byte-order mark or as UTF-8; None if it is neither. ``cut``: its end may be missing."""
    for bom, encoding in _BOMS.items():
        if data.startswith(bom):
            return data.decode(encoding, errors="replace")
    if b"\0" in data:
        return None
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(data, final=not cut)
    except UnicodeDecodeError:
        return None


def _guess(data: bytes) -> str:
    """Return the encoding of ``data``; "" where several are as likely, which would make mojibake."""
    is_utf16, may_be_utf16 = b"\0" in data, len(data) % 2 == 0
    candidates = _UTF_16 if is_utf16 else [*_MULTI_BYTE, *_SINGLE_BYTE, *(_UTF_16 if may_be_utf16 else ())]
    best = from_bytes(data, cp_isolation=candidates).best()
    if best is None:
        return ""
    if best.encoding in (*_UTF_16, *_MULTI_BYTE) or best.coherence >= _MIN_COHERENCE:
        return best.encoding
    letters = [byte for byte in data if byte >= 128 or chr(byte).isalpha()]
    accents = sum(byte >= 128 for byte in letters)
    return "cp1252" if accents <= _MAX_ACCENTS * len(letters) else ""
