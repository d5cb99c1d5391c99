"""The tool that makes the embedded base: what its latents are, and a run from nothing to a folder that draws."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from lora_service.models.loading import load_base
from lora_service.models.registry import EMBEDDED
from lora_service.settings import Settings
from tools.embedded import build, tokenizer, vae
from tools.embedded.components import CHANNELS, Components
from tools.embedded.pool import pool, to_tensor


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def components(work: Path) -> Components:
    return Components.of(pool("variety", 64, work / "pictures")[0])


@pytest.fixture
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, few in (("PICTURES", 64), ("VARIETY", 64), ("UNSEEN", 2), ("FOR_COMPONENTS", 64)):
        monkeypatch.setattr(build, name, few)


def test_latents_are_told_apart_by_how_much_they_vary(components: Components, work: Path) -> None:
    x = to_tensor(pool("variety", 64, work / "pictures")[0])
    latents = components.latents(x)
    assert latents.shape == (64, CHANNELS, 16, 16)
    torch.testing.assert_close(components.basis.T @ components.basis, torch.eye(CHANNELS), atol=1e-4, rtol=0)
    flat = latents.transpose(0, 1).flatten(1)
    torch.testing.assert_close(flat.mean(dim=1), torch.zeros(CHANNELS), atol=1e-3, rtol=0)
    assert (flat.std(dim=1).diff() <= 1e-4).all()
    covariance = torch.cov(flat)
    assert (covariance - covariance.diag().diag()).abs().max() < 1e-3 * covariance.max()


def test_a_patch_is_the_latents_under_it(components: Components) -> None:
    x = torch.zeros(1, 3, 64, 64)
    x[:, :, 8:12, 20:24] = 1
    changed = (components.latents(x) - components.latents(torch.zeros_like(x))).abs().sum(dim=1)[0]
    assert changed.nonzero().tolist() == [[2, 5]]


def test_a_tokenizer_once_learned_is_kept(tmp_path: Path) -> None:
    first = tokenizer.kept(["a red star", "a blue mug at night"] * 20, tmp_path / "tokenizer")
    again = tokenizer.kept(["something else entirely"], tmp_path / "tokenizer")
    assert again.get_vocab() == first.get_vocab()
    assert again("a red star", padding="max_length").input_ids == first("a red star", padding="max_length").input_ids


@pytest.mark.usefixtures("few_pictures")
def test_a_run_makes_a_base_that_draws_and_a_second_goes_on_from_it(work: Path, tmp_path: Path) -> None:
    steps = build.Steps(encoder=2, decoder=2, denoiser=2, finish=2)
    assert build.build(work, steps, only="encoder") is None
    assert [path.name for path in work.glob("*.pt")] == ["encoder.pt"]
    made = build.build(work, steps, only=None)
    assert made is not None
    build.export(made, tmp_path)
    base = load_base(Settings(base_model=str(tmp_path)))
    assert base.prediction_type == "sample"
    posterior = base.vae.encode(torch.zeros(1, 3, 64, 64)).latent_dist
    assert posterior.std.max().item() == pytest.approx(vae.POSTERIOR_STD, rel=1e-2)
    drawn = StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)("a red star", num_inference_steps=2)
    assert drawn.images[0].size == (64, 64)
    files = {path: path.stat().st_mtime_ns for path in work.glob("*.pt")}
    again = build.build(work, steps, only=None)
    assert again is not None
    assert {path: path.stat().st_mtime_ns for path in work.glob("*.pt")} == files
    weights, same = (pipeline.unet.state_dict() for pipeline in (made, again))
    assert all(torch.equal(weights[name].float(), same[name].half().float()) for name in weights)


@pytest.mark.usefixtures("few_pictures")
def test_the_finish_goes_on_from_a_model_that_was_made_before(tmp_path: Path) -> None:
    shipped = StableDiffusionPipeline.from_pretrained(EMBEDDED, safety_checker=None)
    steps = build.Steps(encoder=9, decoder=9, denoiser=9, finish=1)
    further = build.build(tmp_path, steps, only=None, start=EMBEDDED)
    assert further is not None
    assert [path.name for path in tmp_path.glob("*.pt")] == ["finish.pt"]
    assert further.tokenizer.get_vocab() == shipped.tokenizer.get_vocab()
    for part, changed in (("vae", False), ("unet", True), ("text_encoder", True)):
        before, after = (getattr(pipeline, part).state_dict() for pipeline in (shipped, further))
        moved = max(float((after[name] - weights).abs().max()) for name, weights in before.items())
        assert (1e-6 < moved < 1e-2) if changed else moved == 0, part
    build.export(further, tmp_path / "out")
    for kept in ("vae/config.json", "tokenizer/tokenizer.json", "unet/config.json"):
        assert (tmp_path / "out" / kept).read_text() == (EMBEDDED / kept).read_text(), kept
