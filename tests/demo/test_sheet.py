"""Sheets of pictures: labels and captions take room only where there are any."""

from PIL import Image

from lora_service.demo.sheet import GAP, LABEL, SIDE, Row, draw_sheet

RED = Image.new("RGB", (64, 64), (255, 0, 0))


def test_labels_stand_left_of_the_pictures() -> None:
    sheet = draw_sheet([Row("base", [RED, RED]), Row("", [RED])], ["a note"])
    assert sheet.width == LABEL + 2 * (SIDE + GAP) + GAP
    assert sheet.getpixel((LABEL + SIDE + GAP, GAP)) == (255, 0, 0)


def test_without_labels_the_pictures_start_at_the_edge() -> None:
    sheet = draw_sheet([Row("", [RED])])
    assert sheet.getpixel((GAP, GAP)) == (255, 0, 0)
    assert sheet.size == (SIDE + 3 * GAP, SIDE + 2 * GAP)


def test_captions_stand_below_their_pictures() -> None:
    plain, captioned = (draw_sheet([Row("", [RED, RED], captions)]) for captions in ((), ("a red square", "")))
    assert captioned.height > plain.height
    below = captioned.crop((0, GAP + SIDE, captioned.width, captioned.height - GAP)).convert("L")
    halves = (below.crop((GAP, 0, GAP + SIDE, below.height)), below.crop((2 * GAP + SIDE, 0, *below.size)))
    assert [half.getextrema()[0] < 128 for half in halves] == [True, False]
