"""Loading a base model from a folder, and the errors when it cannot be loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_service.errors import BaseModelError
from lora_service.models.defaults import EMBEDDED, ModelDefaults
from lora_service.models.diffusers_folder import load_folder
from lora_service.models.families.sd1 import SD15
from lora_service.models.families.sd2 import SD21, SD21_BASE
from lora_service.models.families.sdxl import SDXL_BASE
from lora_service.models.loading import choose_device, choose_dtype, load_base
from lora_service.models.registry import locate
from lora_service.settings import Settings
from tests.errors import raises
from tests.small_base import pipeline_of, small_base
from tests.small_flow import FLOW_FAMILIES, flow_pipeline_of, small_flow_base

DEVICES: list[tuple[str, dict[str, Any], str | None]] = [
    ("cuda", {}, "cuda"),
    ("cuda:1", {}, "cuda:1"),
    ("cuda", {"base_quantization": "fp8"}, None),
    ("cuda", {"offload_blocks": True}, None),
    ("cpu", {}, None),
]
WEIGHTS, SCHEDULER = "diffusion_pytorch_model.safetensors", "scheduler_config.json"


def save(family: str, folder: Path) -> None:
    """Write a small base of a family in diffusers' layout."""
    is_flow = family in FLOW_FAMILIES
    pipeline = flow_pipeline_of(small_flow_base(family)) if is_flow else pipeline_of(small_base(family=family))
    pipeline.save_pretrained(folder)


def models_in(folder: Path, device: torch.device | None = None) -> dict[str, Any]:
    """The models of a folder in bf16."""
    components = load_folder(folder, "here", torch.bfloat16, device)
    return {"backbone": components.backbone, "vae": components.vae, **components.text_encoders}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small base in diffusers' layout."""
    from diffusers import DDIMScheduler

    base = small_base()
    pipeline_of(base, DDIMScheduler).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_a_folder_is_loaded_frozen_with_its_own_weights(folder: Path) -> None:
    loaded, saved = load_base(Settings(base_model=str(folder))), small_base()
    for name, model in loaded.components.items():
        assert not model.training
        for key, value in saved.components[name].state_dict().items():
            assert torch.equal(model.state_dict()[key], value), key
    assert not any(p.requires_grad for p in loaded.vae.parameters())
    assert loaded.prediction_type == "epsilon"
    assert loaded.defaults == SD15
    assert (loaded.vae_scale_factor, loaded.size_step) == (4, 8)


@pytest.mark.parametrize("family", ["sd1", "sdxl", "flux2-klein", "sd3"])
def test_a_folder_is_loaded_onto_the_device_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    monkeypatch.setattr("diffusers.pipelines.pipeline_utils.SUPPORTED_DEVICE_MAP", ["meta"])
    save(family, tmp_path)
    for name, model in models_in(tmp_path, torch.device("meta")).items():
        tensors = [*model.parameters()]
        assert tensors
        assert {(tensor.device.type, tensor.dtype) for tensor in tensors} == {("meta", torch.bfloat16)}, name


@pytest.mark.parametrize("family", ["sd1", "sdxl", "flux2-klein", "sd3"])
def test_a_folder_loaded_onto_a_device_has_the_weights_that_the_host_has(tmp_path: Path, family: str) -> None:
    save(family, tmp_path)
    expected, loaded = models_in(tmp_path), models_in(tmp_path, torch.device("cpu"))
    for name, model in expected.items():
        tensors = loaded[name].state_dict()
        assert {*model.state_dict()} == {*tensors}
        for key, tensor in model.state_dict().items():
            assert torch.equal(tensor, tensors[key]), (name, key)
            assert tensor.dtype == tensors[key].dtype
        assert [key for key, _ in model.named_buffers()] == [key for key, _ in loaded[name].named_buffers()]
        for (key, one), (_, other) in zip(model.named_buffers(), loaded[name].named_buffers(), strict=True):
            assert torch.equal(one, other), (name, key)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_folder_that_lacks_weights_is_refused_on_a_device_too(folder: Path, part: str) -> None:
    path = next((folder / part).glob("*.safetensors"))
    tensors = load_file(path)
    del tensors[min(tensors)]
    save_file(tensors, path, {"format": "pt"})
    with raises(BaseModelError, field="BASE_MODEL", code="incomplete_model"):
        load_folder(folder, "here", torch.bfloat16, torch.device("cpu"))


@pytest.mark.parametrize(("device", "settings", "expected"), DEVICES)
def test_only_what_stays_on_the_card_is_loaded_onto_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, device: str, settings: dict[str, Any], expected: str | None
) -> None:
    loaded_onto: list[torch.device | None] = []

    def load(path: Path, name: str, dtype: torch.dtype, onto: torch.device | None) -> None:
        loaded_onto.append(onto)
        raise OSError("no more is needed")

    monkeypatch.setattr("lora_service.models.loading.choose_device", lambda settings: torch.device(device))
    monkeypatch.setattr("lora_service.models.loading.choose_dtype", lambda *_, **__: torch.bfloat16)
    monkeypatch.setattr("lora_service.models.loading.check_quantization", lambda *_, **__: None)
    monkeypatch.setattr("lora_service.models.loading.load_folder", load)
    with raises(BaseModelError, code="unreadable_model"):
        load_base(Settings(base_model=str(folder), **settings))
    assert loaded_onto == [expected and torch.device(expected)]


def test_a_base_that_fills_the_card_while_it_is_loaded_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*arguments: object) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr("lora_service.models.loading.load_folder", load)
    with raises(BaseModelError, field="BASE_MODEL", code="out_of_memory"):
        load_base(Settings(base_model=str(folder)))


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_folder_of_an_xl_is_loaded_whole(tmp_path: Path, variant: str | None) -> None:
    original = small_base("v_prediction", "sdxl")
    pipeline_of(original).save_pretrained(tmp_path / "xl", variant=variant)
    loaded = load_base(Settings(base_model=str(tmp_path / "xl")))
    for name, model in original.components.items():
        for key, value in model.state_dict().items():
            assert torch.equal(loaded.components[name].state_dict()[key], value), (name, key)
    assert (loaded.defaults, loaded.prediction_type, loaded.family.name) == (SDXL_BASE, "v_prediction", "sdxl")
    assert loaded.text.zeros_for_empty_prompt


@pytest.mark.parametrize(
    ("family", "dtype", "force_upcast", "expected"),
    [
        ("sdxl", "float16", True, torch.float32),
        ("sdxl", "float16", False, torch.float16),
        ("sdxl", "bfloat16", True, torch.float32),
        ("sd1", "float16", True, torch.float16),
    ],
)
def test_the_vae_of_an_xl_stays_in_full_precision_unless_it_is_a_fixed_one(
    tmp_path: Path, family: str, dtype: str, force_upcast: bool, expected: torch.dtype
) -> None:
    original = small_base(family=family)
    original.vae.register_to_config(force_upcast=force_upcast)
    pipeline_of(original).save_pretrained(tmp_path / "base")
    loaded = load_base(Settings.model_validate({"base_model": str(tmp_path / "base"), "dtype": dtype}))
    assert loaded.vae.dtype == expected
    assert loaded.unet.dtype == getattr(torch, dtype)


@pytest.mark.parametrize(
    ("pipeline", "model"),
    [
        ("StableDiffusionXLImg2ImgPipeline", "refiner"),
        ("StableDiffusionInstructPix2PixPipeline", "instruction editing"),
        ("StableDiffusionUpscalePipeline", "upscaler"),
        ("PixArtAlphaPipeline", "PixArtAlphaPipeline"),
    ],
)
def test_other_models_are_refused_by_name(tmp_path: Path, pipeline: str, model: str) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    with raises(BaseModelError, code="unsupported_model", field="BASE_MODEL") as caught:
        load_base(Settings(base_model=str(tmp_path)))
    assert model in str(caught.value)


def drop_weight(weights: Path) -> None:
    tensors = load_file(weights)
    del tensors[min(tensors)]
    save_file(tensors, weights, {"format": "pt"})


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "code", "named"),
    [
        (lambda d: drop_weight(d / "unet" / WEIGHTS), "incomplete_model", "unet.conv_in.bias"),
        (lambda d: drop_weight(d / "vae" / WEIGHTS), "incomplete_model", "vae.decoder.conv_in.bias"),
        (
            lambda d: drop_weight(d / "text_encoder" / "model.safetensors"),
            "incomplete_model",
            "text_encoder.embeddings",
        ),
        (lambda d: edit_json(d / "text_encoder" / "config.json", max_position_embeddings=9), "unreadable_model", ""),
        (lambda d: (d / "model_index.json").write_text("[]"), "unreadable_model", "model_index.json"),
        (lambda d: shutil.rmtree(d / "tokenizer"), "incomplete_model", "tokenizer"),
        (lambda d: edit_json(d / "scheduler" / SCHEDULER, prediction_type="flow"), "unsupported_prediction", "'flow'"),
        (lambda d: edit_json(d / "scheduler" / SCHEDULER, prediction_type=None), "unsupported_prediction", "None"),
    ],
)
def test_a_folder_that_is_incomplete_or_unsupported_is_refused(
    folder: Path, damage: Callable[[Path], object], code: str, named: str
) -> None:
    damage(folder)
    with raises(BaseModelError, code=code, field="BASE_MODEL") as caught:
        load_base(Settings(base_model=str(folder)))
    assert named in str(caught.value)


def test_an_xl_without_its_second_text_encoder_is_refused(tmp_path: Path) -> None:
    pipeline_of(small_base(family="sdxl")).save_pretrained(tmp_path)
    edit_json(tmp_path / "model_index.json", text_encoder_2=[None, None], tokenizer_2=[None, None])
    with raises(BaseModelError, code="incomplete_model") as caught:
        load_base(Settings(base_model=str(tmp_path)))
    assert "32" in str(caught.value)
    assert "80" in str(caught.value)


def save_with_channels(channels: int, folder: Path, family: str = "sd1") -> Settings:
    original = small_base(family=family)
    original.unet.conv_in = torch.nn.Conv2d(channels, 32, 3, padding=1)
    original.unet.register_to_config(in_channels=channels)
    pipeline_of(original).save_pretrained(folder)
    return Settings(base_model=str(folder))


def test_a_unet_that_takes_more_than_latents_is_refused(tmp_path: Path) -> None:
    with raises(BaseModelError, code="unsupported_model") as caught:
        load_base(save_with_channels(8, tmp_path / "base"))
    assert "pix2pix" in str(caught.value)
    assert "8 input channels" in str(caught.value)


@pytest.mark.parametrize(
    ("family", "pipeline"), [("sd1", "StableDiffusionInpaintPipeline"), ("sdxl", "StableDiffusionXLInpaintPipeline")]
)
def test_an_inpainting_model_draws_and_is_not_trained(tmp_path: Path, family: str, pipeline: str) -> None:
    settings = save_with_channels(9, tmp_path / "base", family)
    edit_json(tmp_path / "base" / "model_index.json", _class_name=pipeline)
    assert load_base(settings).is_inpainting
    with raises(BaseModelError, code="unsupported_model") as caught:
        load_base(settings, for_training=True)
    assert "inpainting" in str(caught.value)


@pytest.mark.parametrize(
    ("config", "prediction", "defaults"),
    [
        ({"cross_attention_dim": 768}, "epsilon", SD15),
        ({"cross_attention_dim": 1024}, "v_prediction", SD21),
        ({"cross_attention_dim": 1024}, "epsilon", SD21_BASE),
        ({"cross_attention_dim": 2048, "addition_embed_type": "text_time"}, "epsilon", SDXL_BASE),
        ({}, "epsilon", None),
    ],
)
def test_a_folders_defaults_are_its_familys_before_anything_is_loaded(
    tmp_path: Path, config: dict[str, object], prediction: str, defaults: ModelDefaults | None
) -> None:
    for name, content in (
        ("unet/config.json", config),
        ("scheduler/scheduler_config.json", {"prediction_type": prediction}),
    ):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(json.dumps(content))
    pipeline = "StableDiffusionXLPipeline" if "addition_embed_type" in config else "StableDiffusionPipeline"
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    assert locate(str(tmp_path), tmp_path / "cache") == (tmp_path, defaults)


def test_a_prediction_type_beside_the_weights_wins_over_their_scheduler_config(folder: Path) -> None:
    (folder / "base.json").write_text(json.dumps({"prediction_type": "v_prediction"}))
    assert load_base(Settings(base_model=str(folder))).prediction_type == "v_prediction"


def test_defaults_beside_the_weights_are_read(folder: Path) -> None:
    (folder / "base.json").write_text(json.dumps({"title": "mine", "resolution": 96}))
    assert load_base(Settings(base_model=str(folder))).defaults == ModelDefaults(title="mine", resolution=96)


@pytest.mark.parametrize(
    "text",
    [
        '{"steps": 3}',
        "[]",
        "not json",
        "\udcff",
        '{"prediction_type": "noise"}',
        '{"resolution": "big"}',
        '{"resolution": 0}',
        '{"learning_rate_ti": -1}',
    ],
)
def test_invalid_defaults_are_refused(folder: Path, text: str) -> None:
    (folder / "base.json").write_text(text, errors="surrogateescape")
    with raises(BaseModelError, code="invalid_defaults"):
        load_base(Settings(base_model=str(folder)))


@pytest.mark.parametrize(
    "name", ["/no/such/folder", "./gone", "sd3000", "a/b/c", "~nobody-here/x", "a" * 300, f"a/{'b' * 300}"]
)
def test_a_base_that_does_not_exist_is_named(name: str) -> None:
    with raises(BaseModelError, code="not_found", field="BASE_MODEL") as caught:
        load_base(Settings(base_model=name))
    assert repr(name) in str(caught.value)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with raises(BaseModelError, code="unreadable_model"):
        load_base(Settings(base_model=str(tmp_path)))


def test_a_device_that_the_machine_lacks_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with raises(BaseModelError, code="device_unavailable", field="DEVICE"):
        choose_device(Settings(device="cuda"))


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for number in range(2):
        monkeypatch.setenv("LOCAL_RANK", str(number))
        assert choose_device(Settings()) == torch.device("cuda", number)
    assert chosen == [0, 1]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with raises(BaseModelError, code="too_few_devices", field="TRAIN_PROCESSES"):
        choose_device(Settings())


@pytest.mark.parametrize(
    ("device", "for_training", "dtype"),
    [("cpu", False, torch.float32), ("cpu", True, torch.float32), ("cuda", False, torch.float16)],
)
def test_the_dtype_suits_the_device(device: str, for_training: bool, dtype: torch.dtype) -> None:
    assert choose_dtype(Settings(), torch.device(device), for_training=for_training) == dtype


def test_the_embedded_base_is_small_and_loads_with_plain_diffusers() -> None:
    from diffusers import StableDiffusionPipeline

    assert sum(path.stat().st_size for path in EMBEDDED.rglob("*") if path.is_file()) < 20 * 2**20
    pipeline = StableDiffusionPipeline.from_pretrained(EMBEDDED, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("a red star", width=64, height=64, num_inference_steps=2).images[0]
    assert picture.size == (64, 64)
    assert load_base(Settings(base_model="embedded")).defaults.title == "lora-service embedded"
