"""The demonstration, and that plain diffusers generates its subject by the trigger word."""

from pathlib import Path

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from PIL import Image

from lora_service.demo.show import CLASS_WORD, PROMPTS, SUBJECT, read_subject, show
from lora_service.lora.files import read_lora
from lora_service.models.defaults import EMBEDDED
from lora_service.models.image_judge import ImageJudge

pytestmark = pytest.mark.slow
SEEDS = (21, 22)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Run the demonstration; return its folder and its log lines."""
    folder, lines = tmp_path_factory.mktemp("demo"), list[str]()
    show(folder, lines.append)
    return folder, lines


def test_one_image_and_one_lora_come_out(shown: tuple[Path, list[str]]) -> None:
    folder, lines = shown
    assert sorted(path.name for path in folder.iterdir()) == ["demo.png", "demo.safetensors"]
    with Image.open(folder / "demo.png") as image:
        assert image.width > 1000
    assert any(line.startswith("similarity to the subject") for line in lines)
    assert any(line.startswith("drift of other prompts") for line in lines)


def test_plain_diffusers_generates_the_subject_by_the_trigger_word_alone(shown: tuple[Path, list[str]]) -> None:
    path = shown[0] / "demo.safetensors"
    trigger = read_lora(path).trigger
    assert trigger
    pictures, judge = read_subject(SUBJECT), ImageJudge.load()
    pipeline = StableDiffusionPipeline.from_pretrained(EMBEDDED, safety_checker=None)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)

    def similarity(word: str) -> float:
        images = [generate(prompt.format(word), seed) for prompt in PROMPTS[::2] for seed in SEEDS]
        return judge.similarity(images, pictures)

    def generate(prompt: str, seed: int) -> Image.Image:
        generator = torch.Generator().manual_seed(seed)
        options = {"num_inference_steps": 15, "guidance_scale": 3.0, "width": 64, "height": 64}
        return pipeline(prompt, generator=generator, **options).images[0]

    base = similarity(f"a {CLASS_WORD}")
    pipeline.load_lora_weights(path)
    trained = similarity(trigger)
    print(f"plain diffusers, trigger word alone: {trained:.2f}, base {base:.2f}")
    assert trained > base + 0.2
