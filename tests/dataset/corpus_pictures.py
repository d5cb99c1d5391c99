"""Image files of every format, and files that are no images."""

from __future__ import annotations

from PIL import Image

from tests.dataset.corpus_case import A, B, Case
from tests.dataset.picture_makers import encoded, picture, png, zipped


def _jpeg_with_orientation(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture(1), "JPEG", exif=exif)


def _animation(form: str) -> bytes:
    return encoded(picture(1), form, save_all=True, append_images=[picture(2)])


def _transparent(alpha: Image.Image) -> bytes:
    image = picture(1).convert("RGBA")
    image.putalpha(alpha)
    return encoded(image)


PICTURES = [
    *(
        Case(f"{form} by content", zipped({"picture": encoded(picture(1), form)}), ("picture",))
        for form in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIF")
    ),
    Case("upper-case endings", zipped({"A.JPG": encoded(picture(1), "JPEG"), "B.PNG": B}), ("A.JPG", "B.PNG")),
    Case("wrong endings", zipped({"a.jpg": A, "b.heic": encoded(picture(2), "JPEG")}), ("a.jpg", "b.heic")),
    *(Case(f"EXIF orientation {n}", zipped({"a.jpg": _jpeg_with_orientation(n)}), ("a.jpg",)) for n in (3, 6, 8)),
    Case("CMYK", zipped({"a.jpg": encoded(picture(1).convert("CMYK"), "JPEG")}), ("a.jpg",)),
    Case("grey", zipped({"a.png": encoded(picture(1).convert("L"))}), ("a.png",)),
    Case("palette", zipped({"a.png": encoded(picture(1).convert("P"))}), ("a.png",)),
    Case("two colours", zipped({"a.png": encoded(picture(1).convert("1"))}), ("a.png",)),
    Case("an animated GIF", zipped({"a.gif": _animation("GIF")}), ("a.gif",), report=("only its first frame",)),
    Case("an animated WebP", zipped({"a.webp": _animation("WEBP")}), ("a.webp",), report=("only its first frame",)),
    Case(
        "a truncated picture",
        zipped({"a.png": A, "b.jpg": encoded(picture(2), "JPEG")[:-200]}),
        ("a.png",),
        skipped={"b.jpg": "damaged"},
    ),
    Case(
        "a picture of zeros",
        zipped({"a.png": A, "b.png": bytes(5000)}),
        ("a.png",),
        skipped={"b.png": "not_an_image"},
    ),
    Case("an empty picture", zipped({"a.png": A, "b.png": b""}), ("a.png",), skipped={"b.png": "not_an_image"}),
    Case(
        "a film",
        zipped({"a.png": A, "b.mp4": b"\0\0\0\x18ftypmp42" + bytes(99)}),
        ("a.png",),
        skipped={"b.mp4": "not_an_image"},
    ),
    Case("a drawing in SVG", zipped({"a.png": A, "b.svg": b"<svg/>"}), ("a.png",), skipped={"b.svg": "not_an_image"}),
    Case(
        "a camera's raw file",
        zipped({"a.png": A, "b.dng": encoded(picture(2), "TIFF")}),
        ("a.png",),
        skipped={"b.dng": "raw_file"},
    ),
    Case(
        "wholly transparent",
        zipped({"a.png": A, "b.png": _transparent(Image.new("L", (96, 72), 0))}),
        ("a.png",),
        skipped={"b.png": "transparent"},
    ),
    Case("too small", zipped({"a.png": png(1, (32, 32))}), ("a.png",), report=("a.png", "enlarged 2.0 times")),
    Case("one pixel", zipped({"a.png": png(1, (1, 1))}), ("a.png",), report=("enlarged 64.0 times",)),
    Case(
        "the same file twice", zipped({"a.png": A, "b.png": A}), ("a.png",), report=("b.png: the same file as a.png",)
    ),
    Case(
        "nearly the same",
        zipped({"a.png": A, "b.jpg": encoded(picture(1), "JPEG")}),
        ("a.png", "b.jpg"),
        report=("b.jpg is nearly the same picture as a.png",),
    ),
]
