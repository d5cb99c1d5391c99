"""Archives as packers make them."""

from __future__ import annotations

import io
import tarfile
import zipfile

from tests.dataset.corpus_case import BOTH, A, B, Case
from tests.dataset.picture_makers import png, tarred, zipped


def _zip64() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in (("a.png", A), ("b.png", B)):
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as file:
                file.write(data)
    return buffer.getvalue()


def _raw_names(*names: bytes) -> bytes:
    """A zip whose names are these bytes, without the flag that says UTF-8."""
    stand_ins = {"#" * len(name) + str(number): name + b"%d" % number for number, name in enumerate(names)}
    data = zipped({f"{key}.png": png(number) for number, key in enumerate(stand_ins)})
    for key, name in stand_ins.items():
        data = data.replace(key.encode(), name)
    return data


ARCHIVES = [
    Case("stored", zipped({"a.png": A, "b.png": B}), BOTH),
    Case("deflated", zipped({"a.png": A, "b.png": B}, zipfile.ZIP_DEFLATED), BOTH),
    Case("bzip2 inside", zipped({"a.png": A, "b.png": B}, zipfile.ZIP_BZIP2), BOTH),
    Case("lzma inside", zipped({"a.png": A, "b.png": B}, zipfile.ZIP_LZMA), BOTH),
    Case("zip64", _zip64(), BOTH),
    Case("named .bin", zipped({"a.png": A}), ("a.png",), file="upload.bin"),
    Case("self-extracting", b"MZ" + bytes(700) + zipped({"a.png": A}), ("a.png",), file="upload.exe"),
    Case(
        "a top folder", zipped({"my dog/": b"", "my dog/a.png": A, "my dog/b.png": B}), ("my dog/a.png", "my dog/b.png")
    ),
    Case("deep folders", zipped({"x/y/z/a.png": A}), ("x/y/z/a.png",)),
    Case("Windows' slashes", zipped({"x\\a.png": A}), ("x/a.png",)),
    Case(
        "what systems leave behind",
        zipped(
            {
                "a.png": A,
                "__MACOSX/._a.png": b"\0\5\x16\7",
                "._a.png": b"\0\5\x16\7",
                ".DS_Store": b"\0\0\0\1Bud1",
                "Thumbs.db": b"\xd0\xcf",
                "desktop.ini": b"[x]",
                ".git/config": b"[core]",
            }
        ),
        ("a.png",),
    ),
    Case("UTF-8 names", zipped({"собака.png": A, "犬.png": B}), ("собака.png", "犬.png")),
    Case("UTF-8 names without the flag", _raw_names("é".encode(), "犬".encode()), ("é0.png", "犬1.png")),
    Case("names of another alphabet", _raw_names(b"\x8c\xa2", b"\x94\x4c"), ("îó0.png", "öL1.png")),
    Case("decomposed names", zipped({"e\u0301.png": A}), ("é.png",)),
    Case("the same name in two folders", zipped({"x/a.png": A, "y/a.png": B}), ("x/a.png", "y/a.png")),
    Case("the same name twice", zipped({"a.png": A}), ("a.png",)),
    Case("numbers in their order", zipped({"10.png": A, "9.png": B}), ("9.png", "10.png")),
    Case("tar", tarred({"a.png": A, "b.png": B}), BOTH, file="upload.tar"),
    Case(
        "GNU tar", tarred({"a.png": A, "n" * 150 + ".png": B}, form=tarfile.GNU_FORMAT), ("a.png", "n" * 150 + ".png")
    ),
    Case("tar.gz", tarred({"a.png": A, "b.png": B}, "w:gz"), BOTH, file="upload.tar.gz"),
    Case("tar.bz2", tarred({"a.png": A, "b.png": B}, "w:bz2"), BOTH),
    Case("tar.xz named zip", tarred({"a.png": A, "b.png": B}, "w:xz"), BOTH),
    Case("a single picture", A, ("portrait.png",), file="portrait.png"),
    Case("a single picture with a wrong ending", A, ("portrait.jpg",), file="portrait.jpg"),
]
