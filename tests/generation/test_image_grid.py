"""Image grids: labels and captions take space only where there are any."""

from PIL import Image

from lora_service.generation.image_grid import GAP, LABEL_WIDTH, SIDE, ImageRow, draw_grid

RED = Image.new("RGB", (64, 64), (255, 0, 0))


def test_labels_stand_left_of_the_images() -> None:
    grid = draw_grid([ImageRow("base", [RED, RED]), ImageRow("", [RED])], ["a note"])
    assert grid.width == LABEL_WIDTH + 2 * (SIDE + GAP) + GAP
    assert grid.getpixel((LABEL_WIDTH + SIDE + GAP, GAP)) == (255, 0, 0)


def test_without_labels_the_images_start_at_the_edge() -> None:
    grid = draw_grid([ImageRow("", [RED])])
    assert grid.getpixel((GAP, GAP)) == (255, 0, 0)
    assert grid.size == (SIDE + 3 * GAP, SIDE + 2 * GAP)


def test_captions_stand_below_their_images() -> None:
    plain, captioned = (draw_grid([ImageRow("", [RED, RED], captions)]) for captions in ((), ("a red square", "")))
    assert captioned.height > plain.height
    below = captioned.crop((0, GAP + SIDE, captioned.width, captioned.height - GAP)).convert("L")
    halves = (below.crop((GAP, 0, GAP + SIDE, below.height)), below.crop((2 * GAP + SIDE, 0, *below.size)))
    assert [half.getextrema()[0] < 128 for half in halves] == [True, False]
