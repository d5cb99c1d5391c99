"""Whole trainings on tiny bases of every family, and their files in plain diffusers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from lora_service.generation.generator import ImageGenerator
from lora_service.generation.request import GenerateRequest
from lora_service.lora.files import read_lora
from lora_service.lora.scale import Scale
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.training.callbacks.held_out import HeldOutLoss
from lora_service.training.data.latent_cache import cache_latents, size_conditioning
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.trainer import Trainer
from tests.small_base import hashes, picture, picture_zip, pipeline_of, small_base
from tests.small_models import FAMILIES

STEPS = {"task": "object", "seed": 1, "max_train_steps_ti": 2, "max_train_steps_tuning": 2, "class_word": "dog"}
FAST = {"learning_rate_ti": 0.01, "learning_rate_text": 0.03, "learning_rate_unet": 0.03}
ENCODERS = {"sd1": ["text_encoder"], "sd2": ["text_encoder"], "sdxl": ["text_encoder", "text_encoder_2"]}


def train(folder: Path, base: DiffusionBase, **inputs: Any) -> Path:
    return Trainer(base, folder / "job").run(picture_zip(folder / "p.zip"), TrainConfig.of(STEPS | inputs)).path


@pytest.mark.parametrize("family", FAMILIES)
def test_both_stages_teach_every_text_encoder_and_leave_the_base_alone(family: str, tmp_path: Path) -> None:
    base = small_base("v_prediction" if family == "sd2" else "epsilon", family)
    before = hashes(base)
    weights = read_lora(train(tmp_path, base, flip=True, continue_inversion=True))
    assert sorted(weights.layers) == [*ENCODERS[family], "unet"]
    assert all(sorted(rows) == ENCODERS[family] for rows in weights.embeddings.values())
    assert tuple(weights.embeddings) == ("<s1>", "<s2>")
    for component, layers in weights.layers.items():
        assert any(layer.up.abs().max() > 0 for layer in layers.values()), component  # type: ignore[attr-defined]
    assert hashes(base) == before


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_diffusers_draws_with_the_file_as_we_do(family: str, tmp_path: Path) -> None:
    path = train(tmp_path, small_base(family=family), **FAST)
    weights = read_lora(path)
    call = {"num_inference_steps": 2, "guidance_scale": 4.0, "width": 32, "height": 32}

    ours = ImageGenerator(small_base(family=family))
    asked = GenerateRequest.of({"prompt": "a photo of <1>", "scheduler": "DDIM", "seed": 3, **call})
    scaled, bare = (
        np.asarray(ours.generate(asked, [(weights, scale)])[0].image, float)
        for scale in (Scale(1.0, 1.0), Scale(0.0, 0.0))
    )

    plain = pipeline_of(small_base(family=family), DDIMScheduler, clip_sample=False, set_alpha_to_one=False)
    plain.load_lora_weights(path)
    for name, rows in weights.embeddings.items():
        for encoder, row in rows.items():
            parts = getattr(plain, encoder), getattr(plain, encoder.replace("text_encoder", "tokenizer"))
            plain.load_textual_inversion(row.float(), token=name, text_encoder=parts[0], tokenizer=parts[1])
            # diffusers leaves the pooling at the highest id, which the new token has.
            getattr(parts[0], "text_model", parts[0]).eos_token_id = parts[1].eos_token_id
    drawn = plain("a photo of <s1><s2>", **call, generator=torch.Generator().manual_seed(3)).images[0]
    assert np.abs(scaled - bare).max() > 5
    assert np.abs(np.asarray(drawn, float) - scaled).max() <= 1  # one weight is merged, the other computed beside


def test_an_xl_file_names_blocks_as_the_original_model_does(tmp_path: Path) -> None:
    from safetensors import safe_open

    with safe_open(train(tmp_path, small_base(family="sdxl")), "pt") as file:
        starts = {key.split("_blocks_")[0].split("_block_")[0].split("_text_model")[0] for key in file.keys()}  # noqa: SIM118
    assert starts == {"lora_unet_input", "lora_unet_middle", "lora_unet_output", "lora_te1", "lora_te2"}


def test_without_a_rate_for_text_the_captions_are_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = small_base(family="sdxl")
    calls: list[int] = []
    base.text.encoders["text_encoder_2"].register_forward_hook(lambda *passed: calls.append(1))
    monkeypatch.setattr(HeldOutLoss, "__call__", lambda loss: 1.0)
    options = {"max_train_steps_ti": 0, "max_train_steps_tuning": 5, "custom_prompts": '["a {}"]', "caption_dropout": 0}
    train(tmp_path, base, learning_rate_text=0, samples=0, **options)
    assert len(calls) == 1


def test_the_loss_of_an_xl_is_that_of_diffusers_own_conditioning() -> None:
    """As train_dreambooth_lora_sdxl.py conditions the UNet: encode_prompt, and original size, crop and target size."""
    base, caption = small_base(family="sdxl"), "a photo of a dog"
    shown = picture(size=(32, 32), original=(100, 80), crop=(10, 0, 90, 80))
    (cache,) = cache_latents([shown], base, flip=False, color_jitter=False, seed=0)
    generator = torch.Generator().manual_seed(0)
    noisy, timesteps = torch.randn(1, 4, 8, 8, generator=generator), torch.tensor([400])
    zero = torch.zeros(1, dtype=torch.long)
    with torch.no_grad():
        text = base.text.encode(base.text.tokenize([caption]))
        ours = base.denoise(noisy, timesteps, text, cache.time_ids(zero, zero))
        states, _, pooled, _ = pipeline_of(base).encode_prompt(caption, do_classifier_free_guidance=False)
        time_ids = torch.tensor([[80.0, 100.0, 0.0, 4.0, 32.0, 32.0]])
        added = {"text_embeds": pooled, "time_ids": time_ids}
        theirs = base.unet(noisy, timesteps, states, added_cond_kwargs=added).sample
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("original", "crop", "size", "mirror", "expected"),
    [
        ((512, 512), (0, 0, 512, 512), (512, 512), False, (512, 512, 0, 0, 512, 512)),
        ((1000, 500), (250, 0, 750, 500), (100, 100), False, (500, 1000, 0, 50, 100, 100)),
        ((1000, 500), (400, 0, 900, 500), (100, 100), False, (500, 1000, 0, 80, 100, 100)),
        ((1000, 500), (400, 0, 900, 500), (100, 100), True, (500, 1000, 0, 20, 100, 100)),
        ((300, 900), (0, 600, 300, 900), (600, 600), True, (900, 300, 1200, 0, 600, 600)),
        ((800, 600), (0, 0, 800, 600), (640, 480), False, (600, 800, 0, 0, 480, 640)),
    ],
)
def test_sizes_are_told_as_xl_was_taught_them(
    original: Any, crop: Any, size: Any, mirror: bool, expected: tuple[int, ...]
) -> None:
    """Height before width; the crop's corner in pixels of the picture once it is scaled to the training size."""
    shown = picture(size=size, original=original, crop=crop)
    assert size_conditioning(shown, mirror=mirror) == expected


def test_mirrored_versions_are_told_their_own_crop() -> None:
    shown = picture(size=(32, 32), original=(100, 80), crop=(0, 0, 80, 80))
    (cache,) = cache_latents([shown], small_base(family="sdxl"), flip=True, color_jitter=False, seed=0)
    assert cache.sizes is not None
    assert cache.sizes[:, 0, 3].tolist() == [0, 8]
    (cache,) = cache_latents([shown], small_base(), flip=True, color_jitter=False, seed=0)
    assert cache.sizes is None


def test_pictures_of_one_size_from_different_originals_keep_their_own() -> None:
    first, second = picture("red"), picture("green", original=(64, 64), crop=(0, 0, 64, 64))
    (cache,) = cache_latents([first, second], small_base(family="sdxl"), flip=False, color_jitter=False, seed=0)
    told = cache.time_ids(torch.tensor([0, 0]), torch.tensor([1, 0]))
    assert told is not None
    assert told[:, 0].tolist() == [64, 32]


def test_tokens_start_as_long_as_the_tables_rows_where_the_recipe_leaves_it_open() -> None:
    from dataclasses import replace

    from lora_service.training.adapters.textual_inversion import NormPull, added_tokens, initial_embeddings

    base = small_base(family="sdxl")
    base.defaults = replace(base.defaults, token_norm=None, token_std=None)
    tables = {name: encoder.get_input_embeddings().weight for name, encoder in base.text.encoders.items()}
    usual = {name: table.norm(dim=-1).median().item() for name, table in tables.items()}
    rows = initial_embeddings(base, [f"<s{i}>" for i in range(200)], (), torch.Generator().manual_seed(0))
    for name, found in rows.items():
        assert found.norm(dim=-1).mean().item() == pytest.approx(usual[name], rel=0.05)
    ones = {name: torch.ones_like(found[:2]) for name, found in rows.items()}
    with added_tokens(base, ("<s1>", "<s2>"), ones) as tokens:
        NormPull(base, tokens.embeddings)(1.0)
        for name, learned in tokens.embeddings.items():
            torch.testing.assert_close(learned.rows.norm(dim=-1), torch.full((2,), usual[name]))
