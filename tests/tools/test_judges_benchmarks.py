"""The benchmarks of the embedded base, run whole on a tiny random base."""

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from benchmarks import prompt_following
from benchmarks.likeness import likeness
from benchmarks.quality.subjects import PROMPTS_BY_KIND
from lora_service.demo import evaluation
from lora_service.demo.evaluation import reconstruct
from lora_service.generation.generator import ImageGenerator
from lora_service.lora.key_mapping import strip_text_model
from lora_service.lora.lycoris import LoraLayer
from lora_service.lora.weights import LoraWeights
from lora_service.models.diffusion_base import DiffusionBase
from tests.small_base import small_base
from tools.judges.questions import answers
from tools.judges.reader import Reader
from tools.judges.validate import accuracy_by_question, render
from tools.synthetic.captions import held_out_prompts
from tools.synthetic.creatures import HELD_OUT_SUBJECTS


class Redness:
    """A stand-in for an image judge: the mean of the red channel."""

    def similarity(self, pictures: list[Image.Image], subject: list[Image.Image]) -> float:
        return float(np.mean([np.asarray(picture)[..., 0] for picture in pictures]))


def untrained_lora(base: DiffusionBase) -> LoraWeights:
    """Return a LoRA whose one layer changes nothing."""
    path, module = next((path, module) for path, module in base.unet.named_modules() if path.endswith("attn1.to_q"))
    layer = LoraLayer(torch.ones(1, module.in_features), torch.zeros(module.out_features, 1), 1.0)
    return LoraWeights({"unet": {strip_text_model(path): layer}})


@pytest.mark.parametrize("kind", PROMPTS_BY_KIND)
def test_an_untrained_lora_has_no_drift(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "SEEDS", 1)
    base = small_base()
    rows, metrics = likeness(base, untrained_lora(base), Redness(), kind, HELD_OUT_SUBJECTS)  # type: ignore[arg-type]
    assert [row.label.split(",")[0] for row in rows] == [
        "training pictures",
        "base",
        "scale 0.5",
        "scale 1.0",
        "other prompts",
        "held-out pictures after the VAE",
    ]
    assert set(metrics.similarity) == {"base", "scale 0.5", "scale 1.0", "ceiling"}
    assert metrics.drift == {"scale 0.5": 0, "scale 1.0": 0}


def test_a_reconstruction_is_that_of_diffusers() -> None:
    base, processor = small_base(), VaeImageProcessor(vae_scale_factor=4)
    picture = Image.effect_mandelbrot((32, 32), (-2, -1, 1, 1), 40).convert("RGB")
    with torch.inference_mode():
        latents = base.vae.encode(processor.preprocess(picture)).latent_dist.mean
        expected = processor.postprocess(base.vae.decode(latents).sample)[0]
    (ours,) = reconstruct(base, [picture])
    assert np.abs(np.asarray(ours, int) - np.asarray(expected, int)).max() <= 1


def test_prompts_are_drawn_and_their_accuracy_tabulated() -> None:
    base, prompts, reader = small_base(), held_out_prompts(4, 5), Reader.load()
    drawn = prompt_following.draw_prompts(ImageGenerator(base), prompts)
    assert [picture.size for picture in drawn] == [(32, 32)] * 4
    lines = prompt_following.table(reader.read(drawn), prompts, reader, reconstruct(base, render(prompts)))
    assert [line.split()[0] for line in lines[1:]] == list(prompt_following.TARGETS)


def test_a_caption_on_the_sheet_names_the_wrong_attributes() -> None:
    (prompt,) = held_out_prompts(1, 5)
    right = answers(prompt)
    wrong = right | {"thing": "nothing"}
    assert prompt_following.annotated_caption(prompt, right) == prompt.caption()
    assert prompt_following.annotated_caption(prompt, wrong) == f"{prompt.caption()} [thing wrong]"
    assert accuracy_by_question([wrong], [prompt])["thing"] == 0
