"""The command ``lora-service grid``, on a small base that draws in earnest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from lora_service.cli.grid import grid_command
from lora_service.errors import InputError, LinkError
from lora_service.generation.image_grid import GAP, LABEL_WIDTH, SIDE, ImageRow
from lora_service.lora.files import write_lora
from tests.errors import raises
from tests.lora.lora_fakes import random_lora
from tests.small_base import small_base

STEP = SIDE + GAP
SETTINGS = ("--seed", "3", "--num_inference_steps", "2", "--width", "32", "--height", "32")


@pytest.fixture(autouse=True)
def _small_base(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    base = small_base()
    monkeypatch.setattr("lora_service.models.loading.load_base", lambda settings: small_base())
    for seed in (1, 2):
        write_lora(tmp_path / f"dog-{seed}.safetensors", random_lora(base.components, seed=seed))
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(grid_command, arguments, catch_exceptions=False)


def cells(path: str, rows: int, columns: int) -> list[list[np.ndarray]]:
    """The pictures of a sheet by row and column."""
    height = ImageRow("", (), ("",)).height(SIDE)
    with Image.open(path) as sheet:
        assert sheet.width == LABEL_WIDTH + columns * STEP + GAP
        return [
            [np.asarray(sheet.crop((x, y, x + SIDE, y + SIDE))) for x in range(LABEL_WIDTH, sheet.width - GAP, STEP)]
            for y in range(GAP, GAP + rows * height, height)
        ]


def test_every_picture_has_the_same_seed_and_its_own_lora_scale_and_prompt() -> None:
    loras = ("--lora", "dog-1.safetensors", "--lora", "dog-2.safetensors")
    output = run("a dog", "a house", *loras, "--scales", "0,0.5,1", "-o", "a.png", *SETTINGS).output
    assert "wrote a.png: 12 pictures, seed 3" in output
    dog_1, dog_2, house_1, house_2 = cells("a.png", 4, 3)
    for row in (dog_1, dog_2, house_1, house_2):
        assert not np.array_equal(row[0], row[1])
        assert not np.array_equal(row[1], row[2])
    assert np.array_equal(dog_1[0], dog_2[0])
    assert np.array_equal(house_1[0], house_2[0])
    assert not np.array_equal(dog_1[2], dog_2[2])
    assert not np.array_equal(dog_1[0], house_1[0])
    run("a dog", "--lora", "dog-2.safetensors", "--scales", "1", "-o", "b.png", *SETTINGS)
    assert np.array_equal(cells("b.png", 1, 1)[0][0], dog_2[2])


def test_mistakes_are_told_before_anything_is_drawn() -> None:
    lora = ("--lora", "dog-1.safetensors")
    for scales in ("", "0,one", "1,,2 3"):
        with raises(InputError, field="--scales"):
            run("a dog", *lora, "--scales", scales)
    with raises(InputError, field="--scales"):
        run("a dog", *lora, "--scales", ",".join(f"{n / 1000}" for n in range(401)))
    with raises(InputError, field="--output"):
        run("a dog", *lora, "-o", "a.jpg")
    with raises(InputError, field="--output", code="is_input"):
        Path("lora.png").write_bytes(b"x")
        run("a dog", "--lora", "lora.png", "-o", "lora.png", "--force")
    with raises(LinkError, field="--lora", code="no_such_file"):
        run("a dog", *lora, "--lora", "none.safetensors")
    Path("grid.png").write_bytes(b"x")
    with raises(InputError, field="--output", code="exists"):
        run("a dog", *lora)
    assert not run("a dog").output.startswith("wrote")
    assert Path("grid.png").read_bytes() == b"x"


def test_a_mistake_while_drawing_leaves_no_sheet() -> None:
    Path("dog-2.safetensors").write_bytes(b"x")
    result = CliRunner().invoke(grid_command, ["a dog", "--lora", "dog-2.safetensors", *SETTINGS])
    assert result.exit_code == 1
    assert not Path("grid.png").exists()
