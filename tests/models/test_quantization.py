"""Bases in 8 and 4 bit: what is refused where, and, with bitsandbytes, layers and whole trainings on them."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lora_service.errors import BaseModelError, InputError, SettingError
from lora_service.lora.files import read_lora
from lora_service.lora.patcher import Patcher
from lora_service.lora.scale import Scale
from lora_service.lora.weights import LoraLayer, LoraWeights
from lora_service.models import quantization
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.loading import assemble, load_base
from lora_service.models.quantization import (
    check_quantization,
    is_quantized,
    quantization_of,
    quantize_backbone,
    weight_shape,
)
from lora_service.settings import Quantization, Settings
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.inputs.resolved_config import resolve_config
from lora_service.training.memory.estimate import estimate
from lora_service.training.trainer import Trainer
from tests.errors import raises
from tests.small_base import DEFAULTS, picture_zip, small_base, small_components

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
QUANTIZED: tuple[Quantization, ...] = ("int8", "nf4")
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: it is in the GPU image"
)
quantizations = pytest.mark.parametrize("kind", QUANTIZED)


def quantized_base(kind: Quantization, family: str = "sd1") -> DiffusionBase:
    """small_base with a quantized UNet, on the CPU, where bitsandbytes computes too, slowly."""
    components = small_components(family=family)
    quantize_backbone(components.backbone, kind, torch.float32, CPU, components.family.kept)
    for layer in components.backbone.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):  # a kernel for inference, which repacks the weight in place
            layer.support_avx512bf16_for_cpu = False
    return assemble("small", components, DEFAULTS, CPU, torch.float32)


def test_it_is_refused_where_it_cannot_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(base_quantization="nf4")
    with raises(SettingError, field="BASE_QUANTIZATION") as caught:
        load_base(settings, for_training=True)
    assert "must be none on a cpu device" in str(caught.value)
    with raises(SettingError, field="BASE_QUANTIZATION") as caught:
        load_base(settings)
    assert "none where pictures are drawn, or fp8: LoRAs cannot be merged" in str(caught.value)
    with raises(SettingError, field="BASE_QUANTIZATION") as caught:
        load_base(Settings(base_quantization="fp8"), for_training=True)
    assert "int8 or nf4" in str(caught.value)
    with raises(SettingError, field="BASE_QUANTIZATION"):
        load_base(Settings(base_quantization="fp8", device="cpu"))
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with raises(SettingError, field="BASE_QUANTIZATION") as caught:
        check_quantization(settings, CUDA, for_training=True)
    assert "bitsandbytes is installed here" in str(caught.value)
    monkeypatch.setattr(quantization, "find_spec", lambda name: object())
    check_quantization(settings, CUDA, for_training=True)
    check_quantization(Settings(), CPU, for_training=False)


def test_the_environment_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BASE_QUANTIZATION", "int8")
    assert Settings.from_environment().base_quantization == "int8"
    monkeypatch.setenv("BASE_QUANTIZATION", "int2")
    with raises(SettingError, field="BASE_QUANTIZATION"):
        Settings.from_environment()


def packed_base(kind: Quantization = "nf4") -> DiffusionBase:
    """A base whose linear layers have weights of the shape and dtype of quantized ones, without bitsandbytes."""
    base = small_base()
    for layer in base.unet.modules():
        if isinstance(layer, nn.Linear):
            packed = torch.zeros(layer.weight.numel() // 2, 1, dtype=torch.uint8)
            packed = packed if kind == "nf4" else torch.zeros(layer.weight.shape, dtype=torch.int8)
            layer.weight = nn.Parameter(packed, requires_grad=False)
    return base


def test_packed_weights_are_counted_as_the_layers_they_are() -> None:
    config = TrainConfig.of({"lora_kind": "dora", "lora_targets": "kohya+conv"})
    plain, packed = (
        estimate(base, resolve_config(config, DEFAULTS, "ohwx", 1).config, checkpointing=False)
        for base in (small_base(), packed_base())
    )
    assert packed.weights < plain.weights
    assert (packed.parameters, packed.step) == (plain.parameters, plain.step)
    assert weight_shape(nn.Conv2d(2, 3, 5)) == (3, 2, 5, 5)


def test_a_lora_is_not_merged_into_packed_weights() -> None:
    base, path = packed_base(), "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    change = LoraLayer(torch.ones(1, 32), torch.ones(32, 1), 1.0)
    with raises(BaseModelError, field="BASE_QUANTIZATION", code="quantized_base"):
        Patcher(base.components, base.tokenizers).apply([(LoraWeights({"unet": {path: change}}), Scale(1.0, 1.0))])


@pytest.mark.parametrize(("kind", "lora_kind"), [("nf4", "lokr"), ("int8", "lokr"), ("int8", "dora")])
def test_kinds_that_cannot_learn_in_packed_weights_are_refused(
    kind: Quantization, lora_kind: str, tmp_path: Path
) -> None:
    base, config = packed_base(kind), TrainConfig.of({"lora_kind": lora_kind, "resolution": 32})
    assert quantization_of(base) == kind
    with raises(InputError, field="lora_kind", code="quantized_base") as caught:
        Trainer(base, tmp_path).run(picture_zip(tmp_path / "p.zip"), config)
    assert f"the server holds the base in {kind} (BASE_QUANTIZATION)" in str(caught.value)


@needs_bitsandbytes
@quantizations
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_linear_layers_alone_are_quantized_and_compute_nearly_alike(kind: Quantization, family: str) -> None:
    plain, base = small_base(family=family), quantized_base(kind, family)
    assert quantization_of(base) == kind
    for path, layer in plain.unet.named_modules():
        ours = base.unet.get_submodule(path)
        kept = path.startswith(("time_embedding", "add_embedding"))
        assert is_quantized(ours) == (isinstance(layer, nn.Linear) and not kept), path
        if isinstance(layer, nn.Linear | nn.Conv2d):
            assert weight_shape(ours) == tuple(layer.weight.shape)
    assert not any(p.requires_grad for p in base.unet.parameters())
    assert not base.unet.training
    assert all(p.is_floating_point() for encoder in base.text.encoders.values() for p in encoder.parameters())
    x, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([500])
    sizes = torch.tensor([[32.0, 32, 0, 0, 32, 32]])
    with torch.inference_mode():
        one, other = (
            each.denoise(x, t, each.text.encode(each.text.tokenize(["a photo of a dog"])), sizes)
            for each in (plain, base)
        )
    assert 0 < (one - other).norm() / one.norm() < (0.05 if kind == "int8" else 0.3)


def state(base: DiffusionBase) -> dict[str, Any]:
    return {key: value.clone() for key, value in base.unet.state_dict().items()}


@needs_bitsandbytes
@quantizations
@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"lora_kind": "dora", "lora_targets": "kohya+conv", "max_train_steps_ti": 0},
        {"mixed_precision": "bf16", "gradient_checkpointing": "on", "preservation": "output", "class_word": "dog"},
    ],
    ids=["lora", "dora", "bf16"],
)
def test_a_whole_training_leaves_the_base_as_it_was(kind: Quantization, inputs: dict[str, Any], tmp_path: Path) -> None:
    if kind == "int8" and inputs.get("lora_kind") == "dora":
        pytest.skip("refused, as another test shows")
    base = quantized_base(kind)
    before, modules = state(base), [(path, id(module)) for path, module in base.unet.named_modules()]
    steps = {"task": "object", "seed": 1, "max_train_steps_ti": 2, "max_train_steps_tuning": 3, "resolution": 32}
    pictures, config = picture_zip(tmp_path / "p.zip"), TrainConfig.of(steps | {"learning_rate_unet": 0.01} | inputs)
    paths = [Trainer(base, tmp_path / name).run(pictures, config).path for name in "ab"]
    after = state(base)
    assert after.keys() == before.keys()
    assert [key for key, value in before.items() if not torch.equal(after[key], value)] == []
    assert [(path, id(module)) for path, module in base.unet.named_modules()] == modules
    assert paths[0].read_bytes() == paths[1].read_bytes()
    plain, weights = small_base(), read_lora(paths[0])
    report = Patcher(plain.components, plain.tokenizers).apply([(weights, Scale(1.0, 1.0))])
    assert report.warning is None
    ups = [layer for layer in weights.layers["unet"].values() if isinstance(layer, LoraLayer)]
    assert all(layer.up.abs().max() > 0 for layer in ups)


@needs_bitsandbytes
@quantizations
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_setting_loads_a_base_that_trains_on_a_card(kind: Quantization, tmp_path: Path) -> None:
    base = load_base(Settings(base_quantization=kind), for_training=True)
    assert quantization_of(base) == kind
    steps = {"task": "object", "seed": 1, "max_train_steps_ti": 1, "max_train_steps_tuning": 2}
    path = Trainer(base, tmp_path / "job").run(picture_zip(tmp_path / "p.zip"), TrainConfig.of(steps)).path
    assert read_lora(path).layers["unet"]
