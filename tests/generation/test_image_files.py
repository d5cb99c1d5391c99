"""Files of images: A1111's text for other programs, and our settings beside it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lora_service.generation.image_files import GeneratedImage, read_settings, save_image, text_parameters

SETTINGS: dict[str, Any] = {
    "prompt": "a photo of a dog, on the beach",
    "negative_prompt": "ugly",
    "num_inference_steps": 20,
    "guidance_scale": 7.0,
    "seed": 3,
    "width": 512,
    "height": 768,
    "scheduler": "DPMSolverMultistepKarras",
    "base": "Stable Diffusion 1.5",
}
_SETTING = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
"""The pattern by which A1111 finds the settings in the last line."""


def text_in(path: Path) -> str:
    """Return the text where A1111, Civitai and ComfyUI's loaders look for it."""
    with Image.open(path) as image:
        if path.suffix == ".png":
            return str(image.info["parameters"])
        comment = image.getexif().get_ifd(0x8769)[0x9286]
        assert comment.startswith(b"UNICODE\0")
        return str(comment[8:].decode("utf-16-be"))


def read_as_a1111(text: str) -> dict[str, str]:
    *lines, last = text.strip().split("\n")
    pairs = _SETTING.findall(last)
    assert len(pairs) >= 3, "A1111 takes a line with fewer settings for a part of the prompt"
    parts: dict[str, list[str]] = {"Prompt": [], "Negative prompt": []}
    name = "Prompt"
    for line in lines:
        if line.startswith("Negative prompt:"):
            name, line = "Negative prompt", line[16:].strip()
        parts[name].append(line)
    read = {name: "\n".join(values) for name, values in parts.items()}
    return read | {name: json.loads(value) if value.startswith('"') else value for name, value in pairs}


def saved(folder: Path, suffix: str, **more: Any) -> Path:
    settings = SETTINGS | more
    return save_image(GeneratedImage(Image.new("RGB", (16, 16), "red"), 3, settings), folder / f"out-0.{suffix}")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_files_carry_the_text_of_a1111(tmp_path: Path, suffix: str) -> None:
    assert read_as_a1111(text_in(saved(tmp_path, suffix))) == {
        "Prompt": "a photo of a dog, on the beach",
        "Negative prompt": "ugly",
        "Steps": "20",
        "Sampler": "DPM++ 2M",
        "Schedule type": "Karras",
        "CFG scale": "7",
        "Seed": "3",
        "Size": "512x768",
        "Model": "Stable Diffusion 1.5",
    }


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize("prompt", ["ä dog", "犬、走る", "a 🐕\nin two lines", "<s1><s2>, (dog:1.2)"])
def test_files_carry_every_letter_and_our_settings(tmp_path: Path, suffix: str, prompt: str) -> None:
    path = saved(tmp_path, suffix, prompt=prompt, lora_scales="0.7/0.5")
    assert read_as_a1111(text_in(path))["Prompt"] == prompt
    assert read_settings(path) == SETTINGS | {"prompt": prompt, "lora_scales": "0.7/0.5"}


def test_latin_letters_are_in_the_chunk_that_every_reader_knows(tmp_path: Path) -> None:
    assert b"tEXtparameters\0" in saved(tmp_path, "png", prompt="ä dog").read_bytes()
    assert b"iTXtparameters\0" in saved(tmp_path, "png", prompt="犬").read_bytes()


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_prompts_of_any_length_have_room(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path, suffix, prompt="犬 " * 10_000, negative_prompt="猫 " * 10_000)
    assert text_in(path).startswith("犬 犬 ")
    if suffix == "png":
        assert read_settings(path)["negative_prompt"] == "猫 " * 10_000


def test_what_is_not_set_is_left_out_and_a_comma_is_quoted() -> None:
    text = text_parameters(SETTINGS | {"negative_prompt": "", "base": "mine, v2: best", "prompt_strength": 0.8})
    assert "Negative prompt" not in text
    assert "Clip skip" not in text
    assert 'Model: "mine, v2: best"' in text
    read = read_as_a1111(text)
    assert (read["Model"], read["Denoising strength"]) == ("mine, v2: best", "0.8")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_another_programs_file_has_no_settings(tmp_path: Path, suffix: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / f"a.{suffix}")
    assert read_settings(tmp_path / f"a.{suffix}") == {}
