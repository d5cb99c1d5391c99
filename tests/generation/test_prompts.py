"""Prompts on their way through the generator: tags of LoRAs, weights, triggers with brackets, embeddings."""

from typing import Any

import pytest
import torch

from lora_service.generation.generator import ImageGenerator
from lora_service.generation.image_files import GeneratedImage
from lora_service.generation.request import GenerateRequest
from lora_service.lora.scale import Scale
from lora_service.lora.weights import LoraLayer, LoraWeights
from tests.small_base import hashes, small_base


@pytest.fixture(scope="module")
def generator() -> ImageGenerator:
    return ImageGenerator(small_base())


def lora(generator: ImageGenerator, trigger: str = "ohwx") -> LoraWeights:
    """A LoRA without tokens that changes one layer of the UNet a lot."""
    modules = generator.base.unet.named_modules()
    path, module = next((path, module) for path, module in modules if path.endswith("attn2.to_k"))
    rng = torch.Generator().manual_seed(7)
    down, up = (torch.randn(shape, generator=rng) for shape in ((2, module.in_features), (module.out_features, 2)))
    layers = {"unet": {path: LoraLayer(down=down, up=up, alpha=2.0)}}
    return LoraWeights(layers, metadata={"modelspec.trigger_phrase": trigger}, name="my-lora")


def embedding(rows: int = 2) -> LoraWeights:
    values = torch.randn(rows, 32, generator=torch.Generator().manual_seed(8))
    names = ["style_(1)", *(f"style_(1)_{row}" for row in range(1, rows))]
    return LoraWeights({}, {name: {"text_encoder": row} for name, row in zip(names, values, strict=True)})


def draw(generator: ImageGenerator, prompt: str, *loras: Any, **options: Any) -> bytes:
    return drawn(generator, prompt, *loras, **options).image.tobytes()


def drawn(generator: ImageGenerator, prompt: str, *loras: Any, **options: Any) -> GeneratedImage:
    inputs = {"prompt": prompt, "seed": 3, "num_inference_steps": 2, "lora_scales": "1"}
    (image,) = generator.generate(GenerateRequest.of(inputs), list(loras), **options)
    return image


def test_weights_change_the_picture_and_escapes_do_not(generator: ImageGenerator) -> None:
    plain = draw(generator, "a photo of a dog (cat)".replace("(", r"\(").replace(")", r"\)"))
    assert draw(generator, "a photo of a (dog:1.5)") != draw(generator, "a photo of a dog")
    assert draw(generator, "a photo of a dog (cat)") != plain


def test_a_tag_in_the_prompt_sets_the_scale_of_the_lora(generator: ImageGenerator) -> None:
    weights = lora(generator)
    lines: list[str] = []
    tagged = drawn(generator, "a dog <lora:my_lora:0.5>", (weights, Scale(1, 1)), log=lines.append)
    assert tagged.image.tobytes() == draw(generator, "a dog", (weights, Scale(0.5, 0.5)))
    assert tagged.settings["lora_scales"] == "0.5"
    assert tagged.settings["prompt"] == "a dog"
    assert any("my_lora" in line and "0.5" in line for line in lines)


def test_a_tag_of_a_lora_that_is_not_there_is_named(generator: ImageGenerator) -> None:
    lines: list[str] = []
    assert draw(generator, "a dog <lora:other:0.5>", log=lines.append) == draw(generator, "a dog")
    assert [line for line in lines if line.startswith("warning:") and "lora_urls" in line]


def test_a_trigger_with_brackets_is_no_weight(generator: ImageGenerator) -> None:
    weights = lora(generator, "dog (cat)"), Scale(1, 1)
    assert draw(generator, "a photo of <1>", weights) == draw(generator, r"a photo of dog \(cat\)", weights)


def test_embeddings_are_called_by_their_words_weighted_or_not_and_count_for_no_reference(
    generator: ImageGenerator,
) -> None:
    weights, bare = (lora(generator), Scale(1, 1)), draw(generator, "a photo of ohwx")
    before, lines = hashes(generator.base), list[str]()
    both = draw(generator, "a style_(1) photo of <1>", weights, embeddings=[embedding()], log=lines.append)
    assert "embedding 1: 'style_(1)'" in lines
    one_row = draw(generator, "a style_(1) photo of <1>", weights, embeddings=[embedding(1)])
    heavier = draw(generator, "a (style_(1):1.5) photo of <1>", weights, embeddings=[embedding()])
    assert len({both, one_row, heavier}) == 3
    lines.clear()
    assert draw(generator, "a photo of ohwx", embeddings=[embedding()], log=lines.append) == bare
    assert [line for line in lines if line.startswith("warning:") and "embedding 1" in line]
    draw(generator, "a photo of ohwx")
    assert hashes(generator.base) == before
