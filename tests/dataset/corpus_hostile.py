"""Archives that attack, lie, or are none."""

from __future__ import annotations

import gzip
import io
import stat
import struct
import tarfile
import zipfile

from PIL import Image

from tests.dataset.corpus_case import A, B, Case
from tests.dataset.picture_makers import encoded, png, tarred, zipped


def _special_zip(*members: tuple[zipfile.ZipInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for info, data in members:
            archive.writestr(info, data)
    return buffer.getvalue()


def _link_zip() -> bytes:
    link = zipfile.ZipInfo("link.png")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return _special_zip((link, b"/etc/passwd"), (zipfile.ZipInfo("a.png"), A))


def _encrypted(data: bytes, name: str) -> bytes:
    """``data`` with the encryption flag set for ``name``, in its header and in the directory."""
    out = bytearray(data)
    for signature, flag_at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = out.find(signature)
        while start >= 0:
            at = start + (30 if flag_at == 6 else 46)
            if out[at : at + len(name)] == name.encode():
                out[start + flag_at] |= 1
            start = out.find(signature, start + 4)
    return bytes(out)


def _lying(declared: int) -> bytes:
    """A zip whose one picture declares another size, in the directory."""
    out = bytearray(zipped({"a.png": A}))
    at = out.find(b"PK\x01\x02")
    out[at + 24 : at + 28] = struct.pack("<I", declared)
    return bytes(out)


def _special_tar(kind: bytes, name: str, target: str = "", size: int = 0) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        special = tarfile.TarInfo(name)
        special.type, special.linkname, special.size = kind, target, size
        archive.addfile(special)
        info = tarfile.TarInfo("a.png")
        info.size = len(A)
        archive.addfile(info, io.BytesIO(A))
    return buffer.getvalue()


def _tar_declaring(size: int) -> bytes:
    info = tarfile.TarInfo("a.png")
    info.size = size
    return info.tobuf() + A


def _large_directory() -> bytes:
    """A zip whose directory has more than 8 MiB, by its comments."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(140):
            info = zipfile.ZipInfo(f"{number}.png")
            info.comment = bytes(65_000)
            archive.writestr(info, A)
    return buffer.getvalue()


def _large_header() -> bytes:
    """A tar.gz of a few kilobytes whose first header says that 10 MiB of names follow, and they do."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 10 << 20
    return gzip.compress(info.tobuf() + bytes(10 << 20))


HOSTILE = [
    Case("a directory of megabytes", _large_directory(), error="zip_bomb"),
    Case("a header of megabytes", _large_header(), error="zip_bomb"),
    Case("climbing out", zipped({"../../a.png": A, "b.png": B}), ("b.png",), skipped={"../../a.png": "unsafe_path"}),
    Case(
        "climbing in the middle",
        zipped({"x/../../a.png": A, "b.png": B}),
        ("b.png",),
        skipped={"x/../../a.png": "unsafe_path"},
    ),
    Case(
        "climbing by backslash", zipped({"..\\a.png": A, "b.png": B}), ("b.png",), skipped={"../a.png": "unsafe_path"}
    ),
    Case("absolute", zipped({"/etc/a.png": A, "b.png": B}), ("b.png",), skipped={"etc/a.png": "unsafe_path"}),
    Case("absolute on a drive", zipped({"C:\\a.png": A, "b.png": B}), ("b.png",), skipped={"C:/a.png": "unsafe_path"}),
    Case("nothing but climbing", zipped({"../a.png": A}), error="unsafe_path"),
    Case("a link in a zip", _link_zip(), ("a.png",), skipped={"link.png": "link"}),
    Case(
        "a link in a tar",
        _special_tar(tarfile.SYMTYPE, "l.png", "/etc/passwd"),
        ("a.png",),
        skipped={"l.png": "link"},
    ),
    Case("a hard link", _special_tar(tarfile.LNKTYPE, "l.png", "a.png"), ("a.png",), skipped={"l.png": "link"}),
    Case("a device", _special_tar(tarfile.CHRTYPE, "null"), ("a.png",), skipped={"null": "special_file"}),
    Case("a pipe", _special_tar(tarfile.FIFOTYPE, "pipe"), ("a.png",), skipped={"pipe": "special_file"}),
    Case(
        "one encrypted",
        _encrypted(zipped({"a.png": A, "b.png": B}), "b.png"),
        ("a.png",),
        skipped={"b.png": "encrypted"},
    ),
    Case("all encrypted", _encrypted(zipped({"a.png": A}), "a.png"), error="encrypted"),
    Case(
        "a bomb by its ratio",
        zipped({"a.png": A, "z.bmp": bytes(40 << 20)}, zipfile.ZIP_DEFLATED),
        ("a.png",),
        skipped={"z.bmp": "zip_bomb"},
    ),
    Case(
        "a bomb by its sum",
        zipped({"a.png": bytes(100_000), "b.png": bytes(100_000)}, zipfile.ZIP_DEFLATED),
        error="archive_too_large",
        options={"max_zip_bytes": 150_000},
    ),
    Case(
        "a bomb in a tar.gz",
        tarred({"a.bmp": bytes(4 << 20)}, "w:gz"),
        error="archive_too_large",
        options={"max_zip_bytes": 1 << 20},
    ),
    Case(
        "an archive beyond the limit", zipped({"a.png": A}), error="archive_too_large", options={"max_zip_bytes": 100}
    ),
    Case(
        "a file beyond the limit",
        zipped({"a.png": A, "b.png": bytes(200_000)}),
        ("a.png",),
        skipped={"b.png": "too_large"},
        options={"max_picture_bytes": 100_000},
    ),
    Case("declared larger than it is", _lying(len(A) + 1), ("a.png",)),
    Case("declared smaller than it is", _lying(len(A) // 2), error="damaged"),
    Case("declared as terabytes", _tar_declaring(1 << 42), error="archive_too_large"),
    Case(
        "too many files",
        zipped({f"{n}.png": b"" for n in range(30)}),
        error="too_many_files",
        quoted="20",
        options={"max_members": 20},
    ),
    Case(
        "too many pictures",
        zipped({f"{n}.png": png(n) for n in range(3)}),
        error="too_many_pictures",
        quoted="2",
        options={"max_pictures": 2},
    ),
    Case(
        "too many pixels",
        zipped({"a.png": A, "big.png": encoded(Image.new("1", (400, 400)))}),
        ("a.png",),
        skipped={"big.png": "too_many_pixels"},
        options={"max_pixels": 10_000},
    ),
    Case(
        "a zip in the zip",
        zipped({"a.png": A, "more.zip": zipped({"b.png": B})}),
        ("a.png",),
        skipped={"more.zip": "nested_archive"},
    ),
    Case(
        "a zip in the zip, named as a picture",
        zipped({"a.png": A, "b.png": zipped({"c.png": B})}),
        ("a.png",),
        skipped={"b.png": "nested_archive"},
    ),
    Case(
        "a tar in the zip",
        zipped({"a.png": A, "more.tar": tarred({"b.png": B})}),
        ("a.png",),
        skipped={"more.tar": "nested_archive"},
    ),
    Case("empty file", b"", error="empty_file"),
    Case("empty zip", zipped({}), error="empty_archive"),
    Case("empty tar", tarred({}), error="not_an_image"),
    Case("only folders", zipped({"x/": b"", "x/y/": b""}), error="empty_archive"),
    Case("only junk", zipped({".DS_Store": b"x"}), error="no_pictures"),
    Case("only text", zipped({"a.txt": b"a dog", "b.txt": b"a cat"}), error="unmatched_text"),
    Case("no archive", b"just a text", error="not_an_image"),
    Case("a web page", b"<!DOCTYPE html><html>Not found</html>", error="not_an_image"),
    Case("RAR", b"Rar!\x1a\x07\x01\x00" + bytes(99), error="unsupported_archive", quoted="RAR"),
    Case("7z", b"7z\xbc\xaf\x27\x1c" + bytes(99), error="unsupported_archive", quoted="7z"),
    Case("a cut-off zip", zipped({"a.png": A, "b.png": B})[:-40], error="archive_damaged"),
    Case("a cut-off tar", tarred({"a.png": A, "b.png": B})[: 1024 + len(A) + 700], error="archive_damaged"),
    Case("a cut-off tar.gz", tarred({"a.png": A, "b.png": B}, "w:gz")[:-300], error="archive_damaged"),
    Case("gzip without a tar", gzip.compress(A), error="archive_damaged"),
    Case(
        "a damaged member",
        zipped({"a.png": A, "b.png": B}).replace(B[60:80], bytes(20)),
        ("a.png",),
        skipped={"b.png": "damaged"},
    ),
]
