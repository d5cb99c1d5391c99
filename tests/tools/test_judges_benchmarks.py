"""The benchmarks of the embedded base, run whole on a tiny random base."""

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from benchmarks import prompt_following
from benchmarks.bases import through_vae
from benchmarks.likeness import LESSONS, likeness
from lora_service.demo import evaluation
from lora_service.generation.generator import ImageGenerator
from lora_service.lora.key_mapping import strip_text_model
from lora_service.lora.lycoris import LoraLayer
from lora_service.lora.weights import LoraWeights
from lora_service.models.diffusion_base import DiffusionBase
from tests.small_base import small_base
from tools.judges.questions import answers
from tools.judges.reader import Reader
from tools.judges.validate import renders, shares_right
from tools.synthetic.captions import held_out_prompts
from tools.synthetic.creatures import HELD_OUT_SUBJECTS


class Redness:
    """Stands for an image judge: the mean of the red channel."""

    def similarity(self, pictures: list[Image.Image], subject: list[Image.Image]) -> float:
        return float(np.mean([np.asarray(picture)[..., 0] for picture in pictures]))


def nothing_learned(base: DiffusionBase) -> LoraWeights:
    """A LoRA whose one layer changes nothing."""
    path, module = next((path, module) for path, module in base.unet.named_modules() if path.endswith("attn1.to_q"))
    layer = LoraLayer(torch.ones(1, module.in_features), torch.zeros(module.out_features, 1), 1.0)
    return LoraWeights({"unet": {strip_text_model(path): layer}})


@pytest.mark.parametrize("kind", LESSONS)
def test_a_lora_that_learned_nothing_moves_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "SEEDS", (1,))
    base = small_base()
    rows, figures = likeness(base, nothing_learned(base), Redness(), kind, HELD_OUT_SUBJECTS)  # type: ignore[arg-type]
    assert [row.label.split(",")[0] for row in rows] == [
        "taught with",
        "base",
        "scale 0.5",
        "scale 1.0",
        "other prompts",
        "further pictures after the VAE",
    ]
    assert set(figures.similarity) == {"base", "scale 0.5", "scale 1.0", "ceiling"}
    assert figures.drift == {"scale 0.5": 0, "scale 1.0": 0}


def test_through_the_vae_is_what_diffusers_makes_of_a_picture() -> None:
    base, processor = small_base(), VaeImageProcessor(vae_scale_factor=4)
    picture = Image.effect_mandelbrot((32, 32), (-2, -1, 1, 1), 40).convert("RGB")
    with torch.inference_mode():
        latents = base.vae.encode(processor.preprocess(picture)).latent_dist.mean
        expected = processor.postprocess(base.vae.decode(latents).sample)[0]
    (ours,) = through_vae(base, [picture])
    assert np.abs(np.asarray(ours, int) - np.asarray(expected, int)).max() <= 1


def test_prompts_are_drawn_read_and_tabled() -> None:
    base, asked, reader = small_base(), held_out_prompts(4, 5), Reader.load()
    drawn = prompt_following.draw_prompts(ImageGenerator(base), asked)
    assert [picture.size for picture in drawn] == [(32, 32)] * 4
    lines = prompt_following.table(reader.read(drawn), asked, reader, through_vae(base, renders(asked)))
    assert [line.split()[0] for line in lines[1:]] == list(prompt_following.TARGETS)


def test_a_sheets_caption_says_what_is_wrong() -> None:
    (asked,) = held_out_prompts(1, 5)
    right = answers(asked)
    wrong = right | {"thing": "nothing"}
    assert prompt_following.marked(asked, right) == asked.caption()
    assert prompt_following.marked(asked, wrong) == f"{asked.caption()} [thing wrong]"
    assert shares_right([wrong], [asked])["thing"] == 0
