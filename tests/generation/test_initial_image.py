"""Initial images and masks in the size of the result, and the edge between what is drawn and what stays."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageDraw

from lora_service.errors import InputError
from lora_service.generation.initial_image import InitialImage, InputImages
from tests.errors import raises

SIZE = (64, 48)


def photo(size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.effect_noise(size, 90).convert("RGB")


def mask(box: tuple[int, int, int, int] = (16, 8, 47, 39), size: tuple[int, int] = SIZE) -> Image.Image:
    image = Image.new("RGB", size)
    ImageDraw.Draw(image).rectangle(box, fill="white")
    return image


def fit(images: InputImages, size: tuple[int, int] = SIZE, log: Callable[[str], None] = print) -> InitialImage:
    initial = InitialImage.fit(images, size, log)
    assert initial is not None
    return initial


def test_an_image_of_the_results_size_keeps_its_bytes() -> None:
    image = photo()
    assert fit(InputImages(image)).image.tobytes() == image.tobytes()


def test_image_and_mask_are_cropped_alike() -> None:
    image = photo((96, 48))
    image.paste("red", (40, 10, 60, 30))
    initial = fit(InputImages(image, mask((40, 10, 59, 29), (96, 48))))
    assert initial.mask is not None
    assert initial.mask.getbbox() == (24, 10, 44, 30)
    assert initial.image.crop((24, 10, 44, 30)).getcolors() == [(400, (255, 0, 0))]


def test_a_mask_of_another_size_is_scaled_and_the_log_says_so() -> None:
    lines: list[str] = []
    half = mask((8, 4, 23, 19), (32, 24))
    initial = fit(InputImages(photo(), half), log=lines.append)
    assert initial.mask is not None
    assert np.array_equal(np.asarray(initial.mask) > 127, np.asarray(mask((16, 8, 47, 39)).convert("L")) > 127)
    assert "32 × 24" in lines[0]
    assert "64 × 48" in lines[0]


@pytest.mark.parametrize(
    ("images", "code"),
    [
        (InputImages(None, mask()), "mask_without_image"),
        (InputImages(photo(), mask(size=(64, 64))), "mask_shape"),
        (InputImages(photo(), Image.new("RGB", SIZE)), "empty_mask"),
        (InputImages(photo(), Image.new("RGB", SIZE, (12, 12, 12))), "empty_mask"),
        # White only where the crop to the result's shape cuts it off.
        (InputImages(photo((128, 48)), mask((0, 0, 9, 47), (128, 48))), "empty_mask"),
    ],
)
def test_a_mask_that_says_nothing_is_refused(images: InputImages, code: str) -> None:
    with raises(InputError, code=code, field="mask"):
        InitialImage.fit(images, SIZE, print)


def test_the_noise_of_a_jpeg_is_no_mask() -> None:
    noisy = np.asarray(mask().convert("L")).astype(int)
    noisy = np.abs(noisy - np.random.default_rng(0).integers(0, 12, noisy.shape)).astype(np.uint8)
    initial = fit(InputImages(photo(), Image.fromarray(noisy)))
    assert initial.mask == fit(InputImages(photo(), mask())).mask


def test_latents_are_drawn_anew_where_a_single_pixel_is_white() -> None:
    thin = fit(InputImages(photo(), mask((0, 9, 20, 9))))
    assert thin.repainted_cells(8).nonzero()[0].tolist() == [1, 1, 1]
    assert thin.repainted_cells(8).nonzero()[1].tolist() == [0, 1, 2]
    assert fit(InputImages(photo())).repainted_cells(8).all()


@pytest.mark.parametrize("feather", [0, 1, 8, 100])
def test_black_parts_are_the_images_own_bytes_and_the_edge_is_soft_within_the_white(feather: int) -> None:
    image, white = photo(), mask()
    drawn = Image.new("RGB", SIZE, "red")
    kept = np.asarray(fit(InputImages(image, white)).keep_unmasked(drawn, feather))
    black = np.asarray(white)[..., 0] == 0
    assert np.array_equal(kept[black], np.asarray(image)[black])
    share = np.abs(kept.astype(int) - np.asarray(image)).max(axis=2)[24] > 0  # along the middle row
    assert share[16 + feather + 1 : 47 - feather].all()
    from_edge = [np.abs(kept[24, 16 + i].astype(int) - [255, 0, 0]).max() for i in range(8)]
    if feather == 0:
        assert max(from_edge) == 0
    if feather == 8:
        assert from_edge[0] > from_edge[-1]


def test_a_mask_without_edges_is_drawn_all_over() -> None:
    white = Image.new("L", SIZE, 255)
    drawn = Image.new("RGB", SIZE, "red")
    assert fit(InputImages(photo(), white)).keep_unmasked(drawn, 8).tobytes() == drawn.tobytes()


def test_gray_in_a_mask_mixes() -> None:
    gray = Image.new("L", SIZE, 128)
    kept = fit(InputImages(Image.new("RGB", SIZE, "black"), gray)).keep_unmasked(Image.new("RGB", SIZE, "white"), 0)
    assert kept.getpixel((30, 20)) == (128, 128, 128)
