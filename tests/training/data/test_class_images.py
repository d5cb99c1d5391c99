"""Class pictures that the base draws: the same as the generator's, kept between jobs, and no more than may be kept."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from lora_service.dataset.load import TrainingDataset
from lora_service.generation.generator import ImageGenerator
from lora_service.generation.request import GenerateRequest
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.fingerprint import fingerprint
from lora_service.settings import Settings
from lora_service.training.data.class_dataset import class_options
from lora_service.training.data.class_image_cache import ClassImageCache
from lora_service.training.data.class_images import ClassImageArtist
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.inputs.resolved_config import resolve_config
from tests.small_base import DEFAULTS, hashes, small_base

PROMPTS = ("a dog", "a cat")


def drawn(
    folder: Path, base: DiffusionBase, cache: ClassImageCache, prompts: tuple[str, ...] = PROMPTS, side: int = 32
) -> tuple[TrainingDataset, str]:
    """Three class pictures, and the log."""
    config = TrainConfig(task="object", preservation="prior", class_prompt="|".join(prompts), resolution=side)
    resolved = resolve_config(config, DEFAULTS, "zwx", 1)
    options = class_options(resolved.config.dataset_options(DEFAULTS, Settings(), "zwx"), resolved)
    lines: list[str] = []
    dataset = ClassImageArtist(base, cache, lines.append).dataset(resolved.class_prompts, 3, options, folder)
    return dataset, "\n".join(lines)


def test_they_are_the_generators_own_pictures_of_the_prompts_in_turn(tmp_path: Path) -> None:
    base = small_base()
    before = hashes(base)
    dataset, log = drawn(tmp_path / "job", base, ClassImageCache(tmp_path / "cache", 2**20))
    assert hashes(base) == before
    for seed, image in enumerate(dataset.images):
        prompt = PROMPTS[seed % 2]
        request = GenerateRequest(prompt=prompt, seed=seed, width=32, height=32)
        expected = ImageGenerator(small_base()).generate(request, [])[0].image
        assert image.image.tobytes() == expected.convert("RGB").tobytes()
        assert image.captions == (f"{{}}, {prompt}",)
    assert "3 drawn" in log
    assert list((tmp_path / "job").iterdir()) == []


def test_another_job_takes_them_from_the_cache_unless_anything_differs(tmp_path: Path) -> None:
    cache, base = ClassImageCache(tmp_path / "cache", 2**20), small_base()
    first, _ = drawn(tmp_path / "a", base, cache)
    again, log = drawn(tmp_path / "b", small_base(), cache)
    assert "0 drawn" in log
    assert "3 from an earlier job" in log
    assert [i.image.tobytes() for i in again.images] == [i.image.tobytes() for i in first.images]
    assert "2 drawn" in drawn(tmp_path / "c", base, cache, ("a fish", "a cat"))[1]
    assert "3 drawn" in drawn(tmp_path / "d", base, cache, side=64)[1]
    more_steps = replace(base, defaults=replace(DEFAULTS, num_inference_steps=3))
    assert "3 drawn" in drawn(tmp_path / "e", more_steps, cache)[1]
    other = small_base()
    with torch.no_grad():
        other.unet.conv_in.weight += 0.1
    assert fingerprint(other) != fingerprint(base)
    assert "3 drawn" in drawn(tmp_path / "f", other, cache)[1]


def test_a_damaged_picture_is_drawn_again(tmp_path: Path) -> None:
    cache, base = ClassImageCache(tmp_path / "cache", 2**20), small_base()
    drawn(tmp_path / "a", base, cache)
    damaged = next(cache.folder.glob("*/0.png"))
    whole = damaged.read_bytes()
    for data in (b"", b"no picture", whole[: len(whole) // 2]):
        damaged.write_bytes(data)
        assert "1 drawn" in drawn(tmp_path / "b", base, cache)[1]
        assert damaged.read_bytes() == whole


def test_what_was_used_longest_ago_goes_first_and_nothing_of_this_job(tmp_path: Path) -> None:
    picture = Image.effect_noise((32, 32), 50).convert("RGB")
    cache = ClassImageCache(tmp_path, 2**20)
    for age, key in enumerate(("new", "old", "oldest")):
        cache.store(key, 0, picture)
        os.utime(tmp_path / key / "0.png", (1e9 - age, 1e9 - age))
    size = (tmp_path / "new" / "0.png").stat().st_size
    ClassImageCache(tmp_path, 2 * size).trim(kept=())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]
    assert cache.find("old", 0) is not None  # a use
    ClassImageCache(tmp_path, size).trim(kept=())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old"]
    ClassImageCache(tmp_path, 1).trim(kept=("old",))
    assert cache.find("old", 0) is not None


def test_a_cache_of_0_bytes_keeps_nothing(tmp_path: Path) -> None:
    _, log = drawn(tmp_path / "a", small_base(), ClassImageCache(tmp_path / "cache", 0))
    assert "3 drawn" in log
    assert not (tmp_path / "cache").exists()


def test_a_disk_that_takes_no_pictures_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    dataset, log = drawn(tmp_path / "a", small_base(), ClassImageCache(tmp_path / "cache", 2**20))
    assert len(dataset.images) == 3
    assert log.count("cannot be kept") == 1


@pytest.mark.parametrize("side", [32])
def test_no_file_half_written_is_left(tmp_path: Path, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(self: Image.Image, path: Path, format: str) -> None:
        path.write_bytes(b"half")
        raise OSError("no space")

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(OSError, match="no space"):
        ClassImageCache(tmp_path, 2**20).store("key", 0, Image.new("RGB", (side, side)))
    assert list((tmp_path / "key").iterdir()) == []
