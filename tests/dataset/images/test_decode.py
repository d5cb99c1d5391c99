"""Image files become upright sRGB."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from lora_service.dataset.images.decode import DecodedImage, decode, mask_in
from lora_service.dataset.upload.source_files import SourceFile, UnusableFileError
from tests.dataset.picture_makers import encoded, half_mask, picture
from tests.errors import raises

WHITE = (255, 255, 255)


def decode_bytes(
    data: bytes, folder: Path, target_side: int = 64, background: tuple[int, int, int] = WHITE
) -> DecodedImage:
    path = folder / "picture"
    path.write_bytes(data)
    return decode(SourceFile("picture", path), target_side, background, max_pixels=10_000_000)


def distance(one: Image.Image, other: Image.Image) -> float:
    """Return the mean difference of the values, of 255."""
    return float(np.abs(np.asarray(one, dtype=float) - np.asarray(other, dtype=float)).mean())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_orientation_is_applied(form: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = picture(1, (96, 64))
    upright = ImageOps.exif_transpose(_with_exif(stored, exif))
    decoded = decode_bytes(encoded(stored, form, exif=exif.tobytes(), quality=95), tmp_path)
    assert decoded.original == decoded.image.size == upright.size
    assert distance(decoded.image, upright) < 4


def _with_exif(image: Image.Image, exif: Image.Exif) -> Image.Image:
    return Image.open(io.BytesIO(encoded(image, "PNG", exif=exif)))


def test_exif_orientation_is_applied_in_heic(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = decode_bytes(encoded(picture(1, (96, 64)), "HEIF", exif=exif.tobytes(), quality=95), tmp_path)
    assert decoded.image.size == (64, 96)
    assert distance(decoded.image, picture(1, (96, 64)).transpose(Image.Transpose.ROTATE_270)) < 6


def test_a_damaged_exif_block_does_not_matter(tmp_path: Path) -> None:
    data = encoded(picture(1), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode_bytes(data, tmp_path).image.size == (96, 72)


def test_sixteen_bits_keep_their_brightness(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64 * 64, dtype=np.uint16).reshape(64, 64)
    for form in ("PNG", "TIFF"):
        decoded = decode_bytes(encoded(Image.fromarray(ramp), form), tmp_path)
        expected = Image.fromarray((ramp / 257).round().astype(np.uint8)).convert("RGB")
        assert distance(decoded.image, expected) < 1


def test_floating_point_tiffs_are_read_from_0_to_1(tmp_path: Path) -> None:
    decoded = decode_bytes(encoded(Image.fromarray(np.full((64, 64), 0.5, dtype=np.float32)), "TIFF"), tmp_path)
    assert decoded.image.getpixel((5, 5)) == (128, 128, 128)


def test_profiles_are_applied(tmp_path: Path) -> None:
    """Against LittleCMS at full size; a D50 Lab value, and the Lab of sRGB's own red."""
    lab = Image.new("LAB", (64, 64), (138, 81 + 128, 70 + 128))
    red, green, blue = decode_bytes(encoded(lab, "TIFF"), tmp_path).image.getpixel((1, 1))
    assert red > 245
    assert green < 20
    assert blue < 20


def test_an_srgb_profile_changes_nothing(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert distance(decode_bytes(encoded(picture(1), icc_profile=profile), tmp_path).image, picture(1)) < 0.5


def test_an_unreadable_profile_is_warned_of(tmp_path: Path) -> None:
    decoded = decode_bytes(encoded(picture(1), icc_profile=b"no profile"), tmp_path)
    assert decoded.warnings == ("its colour profile cannot be read and was ignored",)
    assert distance(decoded.image, picture(1)) == 0


def test_cmyk_as_pillow_converts_it(tmp_path: Path) -> None:
    data = encoded(picture(1).convert("CMYK"), "TIFF")
    assert distance(decode_bytes(data, tmp_path).image, picture(1).convert("CMYK").convert("RGB")) == 0


def test_transparency_lies_on_the_background(tmp_path: Path) -> None:
    image = Image.new("RGBA", (96, 72), (255, 0, 0, 255))
    image.putalpha(half_mask())
    decoded = decode_bytes(encoded(image), tmp_path, background=(0, 0, 255))
    assert decoded.image.getpixel((10, 10)) == (0, 0, 255)
    assert decoded.image.getpixel((80, 10)) == (255, 0, 0)
    assert decoded.alpha is not None
    assert decoded.alpha.tobytes() == half_mask().tobytes()


def test_transparent_palettes_are_transparent(tmp_path: Path) -> None:
    image = half_mask().convert("P")
    decoded = decode_bytes(encoded(image, "GIF", transparency=image.getpixel((0, 0))), tmp_path)
    assert decoded.image.getpixel((10, 10)) == WHITE
    assert decoded.alpha is not None


def test_invisible_colours_do_not_bleed_when_reduced(tmp_path: Path) -> None:
    image = Image.new("RGBA", (600, 600), (0, 255, 0, 255))
    image.putalpha(half_mask((600, 600)).point(lambda value: 255 - value))
    image.paste((255, 0, 0, 0), (301, 0, 600, 600))
    decoded = decode_bytes(encoded(image), tmp_path, target_side=50)
    assert decoded.image.size == (100, 100)
    reds = np.asarray(decoded.image)[:, :51, 0]  # the last column is half background
    assert reds[:, :50].max() == 0


def test_opaque_alpha_is_no_alpha(tmp_path: Path) -> None:
    assert decode_bytes(encoded(picture(1).convert("RGBA")), tmp_path).alpha is None


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_large_images_are_reduced_early_but_not_below_twice_the_target(form: str, tmp_path: Path) -> None:
    decoded = decode_bytes(encoded(picture(1, (1600, 1200)), form), tmp_path, target_side=100)
    assert decoded.original == (1600, 1200)
    assert 200 <= min(decoded.image.size) < 400
    assert distance(decoded.image, picture(1, (1600, 1200)).resize(decoded.image.size)) < 2


def test_masks_are_read_from_brightness_or_transparency(tmp_path: Path) -> None:
    cut_out = picture(1).convert("RGBA")
    cut_out.putalpha(half_mask())
    for image in (half_mask(), half_mask().convert("1"), half_mask().convert("RGB"), cut_out):
        path = tmp_path / "mask"
        path.write_bytes(encoded(image))
        assert (
            mask_in(decode(SourceFile("mask", path), 10_000, (0, 0, 0), 10_000_000)).tobytes() == half_mask().tobytes()
        )


def test_other_files_are_refused_with_the_formats_that_are_read(tmp_path: Path) -> None:
    with raises(UnusableFileError, code="not_an_image") as refused:
        decode_bytes(b"hello", tmp_path)
    assert "jpg, png" in str(refused.value)
