"""The build of the embedded base: its latents, its parts, and whole builds to a folder that can be loaded."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from lora_service.models.defaults import EMBEDDED
from lora_service.models.loading import load_base
from lora_service.settings import Settings
from tools.embedded import build, diffusion, tokenizer, vae
from tools.embedded.pool import load_pool, start_pool, to_tensor
from tools.embedded.vae import CHANNELS, PrincipalComponents
from tools.synthetic.description import GROUPS

FEW = build.DenoiserOptions(pictures=96, batch=8)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def components(work: Path) -> PrincipalComponents:
    return PrincipalComponents.fit(load_pool("variety", 64, work / "pictures")[0])


@pytest.fixture
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, count in (("VAE_PICTURES", 64), ("UNSEEN_PICTURES", 2), ("COMPONENTS_PICTURES", 64)):
        monkeypatch.setattr(build, name, count)
    monkeypatch.setattr(build.build, "__defaults__", (*build.build.__defaults__[:-1], FEW))


def test_latents_are_uncorrelated_and_ordered_by_variance(components: PrincipalComponents, work: Path) -> None:
    x = to_tensor(load_pool("variety", 64, work / "pictures")[0])
    latents = components.latents(x)
    assert latents.shape == (64, CHANNELS, 16, 16)
    torch.testing.assert_close(components.basis.T @ components.basis, torch.eye(CHANNELS), atol=1e-4, rtol=0)
    flat = latents.transpose(0, 1).flatten(1)
    torch.testing.assert_close(flat.mean(dim=1), torch.zeros(CHANNELS), atol=1e-3, rtol=0)
    assert (flat.std(dim=1).diff() <= 1e-4).all()
    covariance = torch.cov(flat)
    assert (covariance - covariance.diag().diag()).abs().max() < 1e-3 * covariance.max()


def test_a_patch_changes_only_its_own_latents(components: PrincipalComponents) -> None:
    x = torch.zeros(1, 3, 64, 64)
    x[:, :, 8:12, 20:24] = 1
    changed = (components.latents(x) - components.latents(torch.zeros_like(x))).abs().sum(dim=1)[0]
    assert changed.nonzero().tolist() == [[2, 5]]


def test_a_trained_tokenizer_is_loaded(tmp_path: Path) -> None:
    first = tokenizer.load_or_train(["a red star", "a blue mug at night"] * 20, tmp_path / "tokenizer")
    again = tokenizer.load_or_train(["something else entirely"], tmp_path / "tokenizer")
    assert again.get_vocab() == first.get_vocab()
    assert again("a red star", padding="max_length").input_ids == first("a red star", padding="max_length").input_ids


@pytest.mark.usefixtures("few_pictures")
def test_a_build_makes_a_base_that_draws_and_a_second_one_resumes(work: Path, tmp_path: Path) -> None:
    steps = build.Steps(encoder=2, decoder=2, denoiser=2, finish=2)
    assert build.build(work, steps, only="encoder", options=FEW) is None
    assert [path.name for path in work.glob("*.pt")] == ["encoder.pt"]
    built = build.build(work, steps, options=FEW)
    assert built is not None
    build.export(built, tmp_path)
    base = load_base(Settings(base_model=str(tmp_path)))
    assert base.prediction_type == "sample"
    posterior = base.vae.encode(torch.zeros(1, 3, 64, 64)).latent_dist
    assert posterior.std.max().item() == pytest.approx(vae.POSTERIOR_STD, rel=1e-2)
    drawn = StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)("a red star", num_inference_steps=2)
    assert drawn.images[0].size == (64, 64)
    files = {path: path.stat().st_mtime_ns for path in work.glob("*.pt")}
    again = build.build(work, steps, options=FEW)
    assert again is not None
    assert {path: path.stat().st_mtime_ns for path in work.glob("*.pt")} == files
    weights, same = (pipeline.unet.state_dict() for pipeline in (built, again))
    assert all(torch.equal(weights[name].float(), same[name].half().float()) for name in weights)


@pytest.mark.usefixtures("few_pictures")
def test_the_last_part_starts_from_an_existing_model(tmp_path: Path) -> None:
    shipped = StableDiffusionPipeline.from_pretrained(EMBEDDED, safety_checker=None)
    steps = build.Steps(encoder=9, decoder=9, denoiser=9, finish=1)
    further = build.build(tmp_path, steps, pretrained=build.PretrainedModel(EMBEDDED, resume=True), options=FEW)
    assert further is not None
    assert [path.name for path in tmp_path.glob("*.pt")] == ["finish.pt"]
    assert further.tokenizer.get_vocab() == shipped.tokenizer.get_vocab()
    for part, changed in (("vae", False), ("unet", True), ("text_encoder", True)):
        before, after = (getattr(pipeline, part).state_dict() for pipeline in (shipped, further))
        moved = max(float((after[name] - weights).abs().max()) for name, weights in before.items())
        assert (1e-6 < moved < 1e-2) if changed else moved == 0, part
    build.export(further, tmp_path / "out")
    for name in ("vae/config.json", "tokenizer/tokenizer.json", "unet/config.json"):
        assert (tmp_path / "out" / name).read_text() == (EMBEDDED / name).read_text(), name


@pytest.mark.usefixtures("few_pictures")
def test_a_new_unet_is_trained_on_an_existing_vae(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: compiled.append(options))
    shipped = StableDiffusionPipeline.from_pretrained(EMBEDDED, safety_checker=None)
    steps = build.Steps(encoder=9, decoder=9, denoiser=9, finish=9, seconds=3)
    pretrained, options = (
        build.PretrainedModel(EMBEDDED, resume=False),
        build.DenoiserOptions(pictures=96, batch=8, compiled=True),
    )
    built = build.build(tmp_path, steps, pretrained=pretrained, options=options)
    assert built is not None
    assert compiled == [{"dynamic": False}]
    assert [path.name for path in tmp_path.glob("*.pt")] == ["denoiser.pt"]
    build.export(built, tmp_path / "out")
    base = load_base(Settings(base_model=str(tmp_path / "out")))
    assert all(torch.equal(weights, shipped.vae.state_dict()[name]) for name, weights in base.vae.state_dict().items())
    assert built.tokenizer.get_vocab() == shipped.tokenizer.get_vocab()
    untrained = diffusion.Denoiser.new(built.tokenizer)
    for part in ("unet", "text_encoder"):
        weights, trained = (getattr(model, part).state_dict() for model in (untrained, built))
        assert {name: value.shape for name, value in weights.items()} == {k: v.shape for k, v in trained.items()}
        assert any(not torch.equal(trained[name], value.half()) for name, value in weights.items()), part


def test_warming_up_changes_no_weights() -> None:
    model = diffusion.Denoiser.new(StableDiffusionPipeline.from_pretrained(EMBEDDED, safety_checker=None).tokenizer)
    before = {name: weights.clone() for name, weights in model.state_dict().items()}
    diffusion.warm_up(model.prepare(torch.device("cpu")), batch=2)
    assert all(torch.equal(weights, before[name]) for name, weights in model.state_dict().items())
    assert all(weights.grad is None for weights in model.parameters())


def test_weights_fit_into_the_package() -> None:
    model = diffusion.Denoiser.new(StableDiffusionPipeline.from_pretrained(EMBEDDED, safety_checker=None).tokenizer)
    for part in (model.unet, model.text_encoder):
        assert 2 * sum(weights.numel() for weights in part.parameters()) < 16 * 2**20 - 2**17


def test_token_ids_are_those_of_the_tokenizer_which_is_unchanged() -> None:
    clip_tokenizer = StableDiffusionPipeline.from_pretrained(EMBEDDED, safety_checker=None).tokenizer
    captions = ["a big red star on a dotted green background", "", "an " + "old " * 60 + "cat"]
    before = clip_tokenizer.backend_tokenizer.to_str()
    ids = diffusion.token_ids(clip_tokenizer, captions)
    assert clip_tokenizer.backend_tokenizer.to_str() == before
    expected = clip_tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    torch.testing.assert_close(ids, expected, rtol=0, atol=0)


def test_a_pool_holds_pictures_with_captions_and_groups(tmp_path: Path) -> None:
    wait = start_pool("synthetic", 600, tmp_path)
    pictures, metadata = wait()
    assert wait() is not None
    assert pictures.shape == (600, 64, 64, 3)
    assert (pictures.reshape(600, -1).std(axis=1) > 0).all()
    assert {group for _, group in metadata} == set(GROUPS)
    again, same = load_pool("synthetic", 600, tmp_path)
    assert (again == pictures).all()
    assert [list(one) for one in metadata] == same
    one = load_pool("synthetic", 1, tmp_path)
    assert (one[0] == pictures[:1]).all()
