"""The safety checker on a small random one of its class, picture by picture."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPImageProcessorPil

from lora_service.errors import HeldBackError, SettingError
from lora_service.generation.image_files import GeneratedImage
from lora_service.generation.safety import SafetyChecker, is_check_required, without_held_back
from lora_service.services.inference_service import InferenceService
from lora_service.settings import Settings
from tests.errors import raises
from tests.small_base import small_base

CPU = torch.device("cpu")
RED, BLUE = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))


def small_checker(folder: Path, bad: Image.Image | None, good: Image.Image, inside: bool = False) -> str:
    """Save a checker that holds back what is more like ``bad`` than like ``good``, or anything; return its folder."""
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 8, "projection_dim": 16}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=16)).eval()
    preprocess = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})

    def embed(image: Image.Image) -> torch.Tensor:
        pixels = preprocess(images=[image], return_tensors="pt").pixel_values
        return normalize(model.visual_projection(model.vision_model(pixels)[1])[0], dim=0)

    with torch.no_grad():
        model.concept_embeds_weights.fill_(2)  # more than any cosine
        model.special_care_embeds_weights.fill_(2)
        model.concept_embeds_weights[0] = 0 if bad else -2
        model.concept_embeds[0] = embed(bad or good) - (embed(good) if bad else 0)
    model.save_pretrained(folder / "safety_checker" if inside else folder)
    preprocess.save_pretrained(folder / "feature_extractor" if inside else folder)
    return str(folder)


def generated(*images: Image.Image) -> list[GeneratedImage]:
    return [GeneratedImage(image, seed) for seed, image in enumerate(images, start=7)]


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in a Stable Diffusion"])
def test_pictures_are_held_back_one_by_one_and_named(tmp_path: Path, inside: bool) -> None:
    checker = SafetyChecker.load(Settings(safety_checker=small_checker(tmp_path, RED, BLUE, inside)), CPU)
    lines: list[str] = []
    kept = without_held_back(generated(BLUE, RED, BLUE), checker, lines.append)
    assert [(index, each.seed) for index, each in kept] == [(0, 7), (2, 9)]
    assert [line for line in lines if "2 of 3 (seed 8)" in line] == lines
    assert RED.getpixel((0, 0)) == (255, 0, 0)


def test_where_all_are_held_back_the_request_fails_with_a_sentence(tmp_path: Path) -> None:
    checker = SafetyChecker.load(Settings(safety_checker=small_checker(tmp_path, RED, BLUE)), CPU)
    with raises(HeldBackError, code="all_held_back"):
        without_held_back(generated(RED, RED), checker, lambda line: None)


def test_only_the_operator_can_allow_pictures_unchecked() -> None:
    lines: list[str] = []
    settings = Settings(safety_checker="somewhere")
    assert is_check_required(settings, disable=True, log=lines.append)
    assert len(lines) == 1
    assert not is_check_required(
        settings.model_copy(update={"allow_disabling_safety_checker": True}), True, lines.append
    )
    assert not is_check_required(Settings(), True, lines.append)
    assert is_check_required(settings, disable=False, log=lines.append)
    assert len(lines) == 1


def test_a_checker_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for where in (str(tmp_path), "nothing here"):
        with raises(SettingError, field="SAFETY_CHECKER"):
            SafetyChecker.load(Settings(safety_checker=where), CPU)


def test_a_request_gets_the_pictures_that_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_service.models.loading.load_base", lambda settings, for_training=False: small_base())
    inputs = {"prompt": "a dog", "num_inference_steps": 1, "seed": 1, "num_outputs": 2}
    with InferenceService(Settings()) as service:
        first, second = (Image.open(path).convert("RGB") for path in service.run(inputs, log=lambda line: None))
    metrics: dict[str, Any] = {}
    settings = Settings(safety_checker=small_checker(tmp_path / "one", second, first))
    with InferenceService(settings) as service:
        lines: list[str] = []
        asked = inputs | {"preview_every": 1, "disable_safety_checker": True}
        (path,) = service.run(asked, log=lines.append, record_metric=metrics.__setitem__)
        assert path.name == "out-0.png"
        assert Image.open(path).convert("RGB").tobytes() == first.tobytes()
    assert metrics["held_back"] == 1
    assert not metrics["preview"]  # a preview would be given out unchecked
    assert {word for line in lines if line.startswith("warning: ") for word in line.split()[1:2]} >= {
        "preview_every",
        "disable_safety_checker",
        "image",
    }
    with InferenceService(Settings(safety_checker=small_checker(tmp_path / "all", None, first))) as service:
        with raises(HeldBackError):
            service.run(inputs, log=lambda line: None, record_metric=metrics.__setitem__)
        assert metrics["error_code"] == "all_held_back"
