"""Files beside images: captions, tables, masks, folders with repeats."""

from __future__ import annotations

import json
from collections.abc import Mapping

from PIL import Image

from tests.dataset.corpus_case import BOTH, A, B, Case
from tests.dataset.picture_makers import encoded, half_mask, picture, zipped


def _transparent(alpha: Image.Image) -> bytes:
    image = picture(1).convert("RGBA")
    image.putalpha(alpha)
    return encoded(image)


def _rows(*rows: Mapping[str, str]) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


BESIDES = [
    Case(
        "captions beside",
        zipped({"a.png": A, "a.txt": b"TOK on grass", "b.png": B, "b.caption": b"TOK at sea"}),
        BOTH,
        report=("captions: file 2",),
    ),
    Case(
        "captions with upper-case endings",
        zipped({"a.PNG": A, "a.TXT": b"TOK on grass"}),
        ("a.PNG",),
        report=("captions: file 1",),
    ),
    Case(
        "a caption without a picture", zipped({"a.png": A, "c.txt": b"x"}), error="unmatched_captions", quoted="c.txt"
    ),
    Case(
        "a caption of a broken picture",
        zipped({"a.png": A, "c.png": b"?", "c.txt": b"x"}),
        ("a.png",),
        skipped={"c.png": "not_an_image"},
    ),
    Case(
        "a readme",
        zipped({"a.png": A, "README.txt": b"hello"}),
        ("a.png",),
        skipped={"README.txt": "unmatched_text"},
    ),
    Case(
        "an empty caption",
        zipped({"a.png": A, "a.txt": b" \n"}),
        ("a.png",),
        report=("caption file is empty", "captions: template 1"),
    ),
    Case(
        "captions.csv",
        zipped({"a.png": A, "b.png": B, "captions.csv": b"image_file,caption\na.png,one\nb.png,two\n"}),
        BOTH,
        report=("captions: file 2",),
    ),
    Case(
        "caption.csv without a header",
        zipped({"a.png": A, "caption.csv": b"a.png;one, two\n"}),
        ("a.png",),
        report=("captions: file 1",),
    ),
    Case(
        "metadata.jsonl",
        zipped({"x/a.png": A, "x/metadata.jsonl": _rows({"file_name": "a.png", "text": "one"})}),
        ("x/a.png",),
        report=("captions: file 1",),
    ),
    Case(
        "metadata.csv",
        zipped({"x/a.png": A, "metadata.csv": b"file_name,text\nx/a.png,one\n"}),
        ("x/a.png",),
        report=("captions: file 1",),
    ),
    Case(
        "a row without a picture",
        zipped({"a.png": A, "metadata.csv": b"file_name,text\nq.png,one\n"}),
        error="unmatched_captions",
        quoted="q.png",
    ),
    Case(
        "a table without its columns",
        zipped({"a.png": A, "metadata.csv": b"x,y,z\n1,2,3\n"}),
        error="invalid_table",
        quoted="file_name",
    ),
    Case(
        "a broken line of JSON",
        zipped({"a.png": A, "metadata.jsonl": b'{"file_name": '}),
        error="invalid_table",
        quoted="Line 1 of 'metadata.jsonl'",
    ),
    Case(
        "kohya's folders",
        zipped({"img/150_red dog/a.png": A, "img/20_dog/b.png": B}),
        ("img/20_dog/b.png", "img/150_red dog/a.png"),
        report=("'150_red dog': each picture counts 150 times, called 'red dog'",),
    ),
    Case(
        "kohya's folder for prior preservation",
        zipped({"img/20_dog/b.png": B, "reg/1_dog/a.png": A, "reg/1_dog/a.txt": b"a dog"}),
        ("img/20_dog/b.png",),
        skipped={"reg/1_dog/a.png": "prior_picture", "reg/1_dog/a.txt": "prior_picture"},
    ),
    Case("nothing but a folder called reg", zipped({"reg/a.png": A}), ("reg/a.png",)),
    Case("a folder called region", zipped({"region/a.png": A, "b.png": B}), ("b.png", "region/a.png")),
    Case(
        "kohya's folder that counts 0 times",
        zipped({"0_dog/a.png": A, "1_dog/b.png": B}),
        ("1_dog/b.png",),
        skipped={"0_dog/a.png": "repeats_0"},
    ),
    Case(
        "kohya's folders of two subjects",
        zipped({"1_red dog/a.png": A, "1_cat/b.png": B}),
        ("1_cat/b.png", "1_red dog/a.png"),
        report=("the folders name 2 subjects, 'cat', 'red dog'",),
    ),
    Case("too many repeats", zipped({"999999_dog/a.png": A}), error="too_many_repeats", quoted="'999999_dog'"),
    Case(
        "kohya's table",
        zipped({"a.png": A, "b.png": B, "meta_cap.json": b'{"/content/img/a": {"caption": "one"}}'}),
        BOTH,
        report=("captions: file 1, template 1",),
    ),
    Case(
        "a picture's JSON",
        zipped({"a.png": A, "a.json": b'{"caption": "one"}', "b.png": B, "b.json": b'{"width": 1}', "x.json": b"{}"}),
        BOTH,
        skipped={"b.json": "unmatched_text", "x.json": "unmatched_text"},
        report=("captions: file 1, template 1",),
    ),
    Case(
        "a caption in Russian of Windows",
        zipped({"a.png": A, "a.txt": "фотография девушки у моря в красном платье".encode("cp1251")}),
        ("a.png",),
        report=("read as cp1251; save it as UTF-8",),
    ),
    *(
        Case(
            f"a mask as {name}", zipped({"a.png": A, name: encoded(half_mask())}), ("a.png",), report=("masks: file 1",)
        )
        for name in ("a.mask.png", "a_mask.png", "a-masklabel.png", "masks/a.png", "masks/a_mask.jpg")
    ),
    Case(
        "folders of pictures and masks",
        zipped({"images/a.png": A, "masks/a.png": encoded(half_mask())}),
        ("images/a.png",),
        report=("masks: file 1",),
    ),
    Case(
        "a mask without a picture",
        zipped({"a.png": A, "masks/a.png": encoded(half_mask()), "masks/q.png": B}),
        ("a.png",),
        skipped={"masks/q.png": "unmatched_mask"},
    ),
    Case(
        "two masks",
        zipped({"a.png": A, "a_mask.png": encoded(half_mask()), "masks/a.png": B}),
        ("a.png",),
        skipped={"masks/a.png": "surplus_mask"},
        report=("masks: file 1",),
    ),
    Case(
        "pictures of masks",
        zipped({"masks/a.png": A, "a dog in a mask.png": B}),
        ("a dog in a mask.png", "masks/a.png"),
    ),
    Case(
        "a mask of another shape",
        zipped({"a.png": A, "a_mask.png": encoded(half_mask((50, 50)))}),
        ("a.png",),
        report=("another shape (50 × 50)", "masks: none 1"),
    ),
    Case(
        "a black mask",
        zipped({"a.png": A, "a_mask.png": encoded(Image.new("L", (96, 72)))}),
        ("a.png",),
        report=("too dark",),
    ),
    Case(
        "a broken mask",
        zipped({"a.png": A, "a_mask.png": b"?"}),
        ("a.png",),
        report=("its mask a_mask.png is not used",),
    ),
    Case(
        "transparency as the mask", zipped({"a.png": _transparent(half_mask())}), ("a.png",), report=("masks: alpha 1",)
    ),
    Case("no face", zipped({"a.png": A}), ("a.png",), report=("no face was found",), options={"task": "face"}),
]
