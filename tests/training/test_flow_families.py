"""Trainings on tiny bases of flow matching: the loss, what learns, and what is said of stage 1."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from lora_service.errors import InputError
from lora_service.generation.generator import ImageGenerator
from lora_service.generation.request import GenerateRequest
from lora_service.lora.files import read_lora
from lora_service.lora.patcher import Patcher
from lora_service.lora.scale import Scale
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.families.zimage import ZIMAGE
from lora_service.models.loading import assemble
from lora_service.models.quantization import quantization_of, quantize_backbone
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.inputs.family_inputs import fit_to_family
from lora_service.training.inputs.resolved_config import resolve_config
from lora_service.training.losses import flow_matching
from lora_service.training.losses.denoising_loss import DenoisingLoss
from lora_service.training.runs.starting_lora import StartingLora
from lora_service.training.trainer import Trainer, TrainResult
from tests.errors import raises
from tests.small_base import hashes, picture_zip
from tests.small_flow import FLOW_FAMILIES, FROZEN_TEXT, flow_pipeline_of, small_flow_base, small_flow_components

STEPS = {"task": "object", "seed": 1, "max_train_steps_tuning": 2, "class_word": "dog", "samples": 0}
DRAWN_WITH = {"flux2-klein": "FLUX.2 klein 4B", "zimage": "Z-Image-Turbo", "krea2": "Krea 2 Turbo"}
"""The distilled twin of the bases that have one."""


def train(folder: Path, base: DiffusionBase, log: Any = print, **inputs: Any) -> TrainResult:
    no_stage_1 = {"max_train_steps_ti": 0} if base.family.learns_text else {}
    config = TrainConfig.of(STEPS | no_stage_1 | inputs)
    return Trainer(base, folder / "job", log=log).run(picture_zip(folder / "p.zip"), config)


@pytest.mark.parametrize("family", FROZEN_TEXT)
def test_a_training_teaches_the_transformer_and_leaves_the_base_alone(family: str, tmp_path: Path) -> None:
    base, lines = small_flow_base(family), list[str]()
    before = hashes(base)
    result = train(tmp_path, base, lines.append, learning_rate_unet=0.01, mask_mode="auto")
    weights = read_lora(result.path)
    assert sorted(weights.layers) == ["transformer"]
    assert any(layer.up.abs().max() > 0 for layer in weights.layers["transformer"].values())  # type: ignore[attr-defined]
    assert not weights.embeddings
    assert weights.trigger and weights.trigger == result.resolved.trigger  # noqa: PT018
    assert any("no stage 1" in line and "trigger" in line for line in lines)
    assert "stage 1" not in result.stages
    assert np.isfinite(result.stages["stage 2"].losses).all()
    assert hashes(base) == before
    assert weights.metadata.get("lora_service.draw_base") == DRAWN_WITH.get(family)


@pytest.mark.parametrize("family", FLOW_FAMILIES)
def test_plain_diffusers_draws_with_the_file_as_we_do(family: str, tmp_path: Path) -> None:
    path = train(tmp_path, small_flow_base(family), learning_rate_unet=0.2, lora_format="diffusers").path
    call = {"num_inference_steps": 2, "guidance_scale": 2.0, "width": 32, "height": 32}
    generator, request = (
        ImageGenerator(small_flow_base(family)),
        GenerateRequest.of({"prompt": "a dog", "seed": 3, **call}),
    )
    scaled, bare = (
        np.asarray(generator.generate(request, [(read_lora(path), scale)])[0].image, float)
        for scale in (Scale(1.0, 1.0), Scale(0.0, 0.0))
    )
    plain = flow_pipeline_of(small_flow_base(family))
    plain.load_lora_weights(path)
    drawn = plain(prompt="a dog", **call, generator=torch.Generator().manual_seed(3)).images[0]
    assert np.abs(scaled - bare).max() > 5
    assert np.abs(np.asarray(drawn, float) - scaled).max() <= 1


@pytest.mark.parametrize("family", FLOW_FAMILIES)
def test_captions_are_encoded_once_and_predictions_do_not_depend_on_the_batch(family: str) -> None:
    base = small_flow_base(family)
    text = base.text.encode(base.text.tokenize(["a dog", "a much longer text about a dog"]))
    noisy = torch.randn(2, *base.scale_latents(base.posterior(torch.zeros(1, 3, 32, 32)).mean).shape[1:])
    times = torch.tensor([0.3, 0.8])
    with torch.no_grad():
        both = base.denoise(noisy, times, text)
        for i in range(2):
            one = base.denoise(noisy[i : i + 1], times[i : i + 1], text[torch.tensor([i])])
            torch.testing.assert_close(both[i : i + 1], one, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FLOW_FAMILIES)
def test_the_loss_is_that_of_diffusers_training_scripts(family: str) -> None:
    """As in train_dreambooth_lora_*.py: ``(1 − σ) x + σ ε``, the target ``ε − x``, no weights of signal and noise."""
    base = small_flow_base(family)
    config = fit_to_family(TrainConfig.of(STEPS), base.family)
    loss = DenoisingLoss(base, resolve_config(config, base.defaults, "ohwx", 1))
    latents = base.scale_latents(base.posterior(torch.rand(2, 3, 32, 32)).mean).detach()
    noise, shares = torch.randn(latents.shape), torch.tensor([0.25, 0.75])
    batch = loss.at(latents, noise, shares)
    positions = base.family.positions(*latents.shape[-2:])
    shift = base.family.shift(base.scheduler_config, positions)
    sigmas = (shift * shares / (1 + (shift - 1) * shares)).view(-1, 1, 1, 1)
    torch.testing.assert_close(batch.noisy, (1 - sigmas) * latents + sigmas * noise)
    torch.testing.assert_close(batch.target, noise - latents)
    assert batch.weights.tolist() == [1, 1]
    text = base.text.encode(base.text.tokenize(["a dog", "a cat"]))
    with torch.no_grad():
        expected = (base.denoise(batch.noisy, batch.timesteps, text) - (noise - latents)).square().mean()
        torch.testing.assert_close(loss(batch, text, None, None), expected)


def test_the_shift_is_the_pipelines_own() -> None:
    zimage, klein = small_flow_base("zimage"), small_flow_base("flux2-klein")
    assert zimage.family.shift(zimage.scheduler_config, 4096) == 6.0
    flux = np.exp([0.5, 1.15])  # FLUX.1's, which klein's is at many steps
    found = [klein.family.shift(klein.scheduler_config, positions) for positions in (256, 4096)]
    np.testing.assert_allclose(found, flux, rtol=0.01)


def test_the_shift_of_a_distilled_krea_is_its_pipelines() -> None:
    base = small_flow_base("krea2")
    distilled = replace(base, pipeline_config={**base.pipeline_config, "is_distilled": True})
    resolved = resolve_config(fit_to_family(TrainConfig.of(STEPS), base.family), base.defaults, "ohwx", 1)
    latents = torch.zeros(1, 4, 8, 8)
    halves = [DenoisingLoss(each, resolved).at(latents, latents, torch.tensor([0.5])) for each in (base, distilled)]
    shift = np.exp(1.15)  # of 0.5, s / (s + 1)
    assert halves[1].timesteps.item() == pytest.approx(shift / (shift + 1))
    assert halves[0].timesteps.item() != pytest.approx(shift / (shift + 1), abs=1e-3)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_a_shift_by_the_resolution_is_the_schedulers_own(kind: str) -> None:
    config = {"use_dynamic_shifting": True, "time_shift_type": kind}
    family, sigmas = small_flow_base("chroma").family, torch.linspace(0.1, 0.9, 5)
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    theirs = scheduler.time_shift(family.log_shift(config, 1024, 0), 1.0, sigmas)
    torch.testing.assert_close(flow_matching.shift_sigmas(sigmas, family.shift(config, 1024)), theirs)


def test_a_folder_of_z_image_turbo_has_its_defaults() -> None:
    assert ZIMAGE.defaults({"shift": 3.0}, {}).title == "Z-Image-Turbo"
    assert ZIMAGE.defaults({"shift": 6.0}, {}).title == "Z-Image"


@pytest.mark.parametrize(
    ("sampling", "mean"), [("logit_normal", 0.5), ("uniform", 0.5), ("cubic", 0.75), ("mode", 0.5)]
)
def test_noise_levels_are_drawn_from_their_distributions(sampling: Any, mean: float) -> None:
    sigmas = flow_matching.sample_sigmas(20000, sampling, torch.Generator().manual_seed(0))
    assert sigmas.min() >= 0
    assert sigmas.max() <= 1
    assert sigmas.mean().item() == pytest.approx(mean, abs=0.01)
    from diffusers.training_utils import compute_density_for_timestep_sampling

    if sampling in ("logit_normal", "mode"):
        theirs = compute_density_for_timestep_sampling(sampling, 20000, 0.0, 1.0, 1.29, generator=torch.Generator())
        quantiles = torch.linspace(0.05, 0.95, 10)
        torch.testing.assert_close(sigmas.quantile(quantiles), theirs.quantile(quantiles), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        ({"learning_rate_text": 1e-5}, "learning_rate_text"),
        ({"snr_gamma": 5.0}, "snr_gamma"),
        ({"clip_skip": 2}, "clip_skip"),
        ({"max_token_length": "150"}, "max_token_length"),
        ({"max_train_steps_ti": 5, "max_train_steps_tuning": 0}, "max_train_steps_tuning"),
        ({"lora_targets": "kohya+conv"}, "lora_targets"),
        ({"lora_format": "cloneofsimo"}, "lora_format"),
    ],
)
def test_what_the_family_cannot_do_is_refused(inputs: dict[str, Any], field: str, tmp_path: Path) -> None:
    with raises(InputError, code="not_for_this_base", field=field):
        train(tmp_path, small_flow_base("zimage"), **inputs)


@pytest.mark.parametrize("kind", ["dora", "lokr", "rslora"])
def test_every_kind_of_layer_learns_and_is_read_back(kind: str, tmp_path: Path) -> None:
    base = small_flow_base("zimage")
    weights = read_lora(train(tmp_path, base, lora_kind=kind, lora_targets="attention+ff").path)
    report = Patcher(base.components, base.tokenizers).apply([(weights, Scale(1.0, 1.0))])
    assert not report.unmatched
    assert report.matched["transformer"] == len(weights.layers["transformer"])


@pytest.mark.parametrize("family", ["flux2-klein", "zimage"])
def test_a_training_goes_on_from_a_file(family: str, tmp_path: Path) -> None:
    first = train(tmp_path, small_flow_base(family), learning_rate_unet=0.01)
    start, lines = StartingLora.of(read_lora(first.path)), list[str]()
    trainer = Trainer(small_flow_base(family), tmp_path / "next", log=lines.append, start=start)
    second = trainer.run(picture_zip(tmp_path / "q.zip"), TrainConfig.of(STEPS))
    layers = len(read_lora(first.path).layers["transformer"])
    assert f"transformer: {layers} layers go on from start_from, 0 are new" in lines
    assert second.resolved.trigger == first.resolved.trigger


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is in the GPU image")
@pytest.mark.parametrize("family", ["flux2-klein", "zimage"])
def test_a_frozen_base_of_4_bits_can_be_trained(family: str, tmp_path: Path) -> None:
    components = small_flow_components(family)
    cpu = torch.device("cpu")
    quantize_backbone(components.backbone, "nf4", torch.float32, cpu, components.family.kept)
    for layer in components.backbone.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):  # a kernel for inference, which repacks the weight in place
            layer.support_avx512bf16_for_cpu = False
    base = assemble("small", components, small_flow_base(family).defaults, cpu, torch.float32)
    assert quantization_of(base) == "nf4"
    result = train(tmp_path, base)
    assert np.isfinite(result.stages["stage 2"].losses).all()
    patcher = Patcher(small_flow_base(family).components, {})
    assert not patcher.apply([(read_lora(result.path), Scale(1.0, 1.0))]).unmatched


@pytest.mark.parametrize("family", FLOW_FAMILIES)
@pytest.mark.parametrize("preservation", ["output", "prior"])
def test_the_class_is_preserved(family: str, preservation: str, tmp_path: Path) -> None:
    inputs = {"preservation": preservation, "num_class_images": 2}
    result = train(tmp_path, small_flow_base(family), **inputs)
    assert set(result.stages["stage 2"].parts) == {"instance", "class"}
