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
    Case("a directory of megabytes", _large_directory(), error="declares more files, or longer names"),
    Case("a header of megabytes", _large_header(), error="declares more files, or longer names"),
    Case("climbing out", zipped({"../../a.png": A, "b.png": B}), ("b.png",), skipped={"../../a.png": "leads out"}),
    Case(
        "climbing in the middle",
        zipped({"x/../../a.png": A, "b.png": B}),
        ("b.png",),
        skipped={"x/../../a.png": "leads out"},
    ),
    Case("climbing by backslash", zipped({"..\\a.png": A, "b.png": B}), ("b.png",), skipped={"../a.png": "leads out"}),
    Case("absolute", zipped({"/etc/a.png": A, "b.png": B}), ("b.png",), skipped={"etc/a.png": "absolute"}),
    Case("absolute on a drive", zipped({"C:\\a.png": A, "b.png": B}), ("b.png",), skipped={"C:/a.png": "absolute"}),
    Case("nothing but climbing", zipped({"../a.png": A}), error="leads out of the archive"),
    Case("a link in a zip", _link_zip(), ("a.png",), skipped={"link.png": "is a link"}),
    Case(
        "a link in a tar",
        _special_tar(tarfile.SYMTYPE, "l.png", "/etc/passwd"),
        ("a.png",),
        skipped={"l.png": "is a link"},
    ),
    Case("a hard link", _special_tar(tarfile.LNKTYPE, "l.png", "a.png"), ("a.png",), skipped={"l.png": "is a link"}),
    Case("a device", _special_tar(tarfile.CHRTYPE, "null"), ("a.png",), skipped={"null": "no ordinary file"}),
    Case("a pipe", _special_tar(tarfile.FIFOTYPE, "pipe"), ("a.png",), skipped={"pipe": "no ordinary file"}),
    Case(
        "one encrypted",
        _encrypted(zipped({"a.png": A, "b.png": B}), "b.png"),
        ("a.png",),
        skipped={"b.png": "encrypted"},
    ),
    Case("all encrypted", _encrypted(zipped({"a.png": A}), "a.png"), error="without a password"),
    Case(
        "a bomb by its ratio",
        zipped({"a.png": A, "z.bmp": bytes(40 << 20)}, zipfile.ZIP_DEFLATED),
        ("a.png",),
        skipped={"z.bmp": "200 times its size"},
    ),
    Case(
        "a bomb by its sum",
        zipped({"a.png": bytes(100_000), "b.png": bytes(100_000)}, zipfile.ZIP_DEFLATED),
        error="would unpack to more",
        options={"max_zip_bytes": 150_000},
    ),
    Case(
        "a bomb in a tar.gz",
        tarred({"a.bmp": bytes(4 << 20)}, "w:gz"),
        error="would unpack to more",
        options={"max_zip_bytes": 1 << 20},
    ),
    Case("an archive beyond the limit", zipped({"a.png": A}), error="at most", options={"max_zip_bytes": 100}),
    Case(
        "a file beyond the limit",
        zipped({"a.png": A, "b.png": bytes(200_000)}),
        ("a.png",),
        skipped={"b.png": "at most"},
        options={"max_picture_bytes": 100_000},
    ),
    Case("declared larger than it is", _lying(len(A) + 1), ("a.png",)),
    Case("declared smaller than it is", _lying(len(A) // 2), error="damaged in the archive"),
    Case("declared as terabytes", _tar_declaring(1 << 42), error="would unpack to more"),
    Case(
        "too many files",
        zipped({f"{n}.png": b"" for n in range(30)}),
        error="more than the 20 files",
        options={"max_members": 20},
    ),
    Case(
        "too many pictures",
        zipped({f"{n}.png": png(n) for n in range(3)}),
        error="3 pictures were given, but 2",
        options={"max_pictures": 2},
    ),
    Case(
        "too many pixels",
        zipped({"a.png": A, "big.png": encoded(Image.new("1", (400, 400)))}),
        ("a.png",),
        skipped={"big.png": "400 × 400 pixels"},
        options={"max_pixels": 10_000},
    ),
    Case(
        "a zip in the zip",
        zipped({"a.png": A, "more.zip": zipped({"b.png": B})}),
        ("a.png",),
        skipped={"more.zip": "archive inside"},
    ),
    Case(
        "a zip in the zip, named as a picture",
        zipped({"a.png": A, "b.png": zipped({"c.png": B})}),
        ("a.png",),
        skipped={"b.png": "archive inside"},
    ),
    Case(
        "a tar in the zip",
        zipped({"a.png": A, "more.tar": tarred({"b.png": B})}),
        ("a.png",),
        skipped={"more.tar": "archive inside"},
    ),
    Case("empty file", b"", error="is empty"),
    Case("empty zip", zipped({}), error="empty archive"),
    Case("empty tar", tarred({}), error="no picture that can be used"),
    Case("only folders", zipped({"x/": b"", "x/y/": b""}), error="empty archive"),
    Case("only junk", zipped({".DS_Store": b"x"}), error="There are no pictures"),
    Case("only text", zipped({"a.txt": b"a dog", "b.txt": b"a cat"}), error="belongs to no picture"),
    Case("no archive", b"just a text", error="no picture that can be used"),
    Case("a web page", b"<!DOCTYPE html><html>Not found</html>", error="not a picture that can be read"),
    Case("RAR", b"Rar!\x1a\x07\x01\x00" + bytes(99), error="is a RAR archive"),
    Case("7z", b"7z\xbc\xaf\x27\x1c" + bytes(99), error="is a 7z archive"),
    Case("a cut-off zip", zipped({"a.png": A, "b.png": B})[:-40], error="damaged or cut off"),
    Case("a cut-off tar", tarred({"a.png": A, "b.png": B})[: 1024 + len(A) + 700], error="damaged or cut off"),
    Case("a cut-off tar.gz", tarred({"a.png": A, "b.png": B}, "w:gz")[:-300], error="damaged"),
    Case("gzip without a tar", gzip.compress(A), error="damaged or cut off"),
    Case(
        "a damaged member",
        zipped({"a.png": A, "b.png": B}).replace(B[60:80], bytes(20)),
        ("a.png",),
        skipped={"b.png": "damaged in the archive"},
    ),
]
