"""Every kind of LoRA on every set of layers: the file draws what the training saw, in every format that holds it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

from lora_service.errors import InputError, LoraFileError
from lora_service.lora.files import FORMAT_NAMES, read_lora, write_lora
from lora_service.lora.lycoris import DoraLayer, LokrLayer
from lora_service.lora.patcher import Patcher
from lora_service.lora.scale import Scale
from lora_service.lora.weights import LoraWeights
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.families.sd1 import SD1
from lora_service.training.adapters.lora_layers import LayerOptions, Layers, lora_layers, parameter_count
from lora_service.training.adapters.lora_targets import learning_targets, targets_in
from lora_service.training.export import TrainedAdapter
from lora_service.training.inputs.config import LoraKind, LoraTargets, TrainConfig
from tests.errors import raises
from tests.small_base import hashes, pipeline_of, small_base

KINDS, TARGETS = get_args(LoraKind), get_args(LoraTargets)
RANK, ALPHA = 3, 2.0


def output(base: DiffusionBase) -> tuple[torch.Tensor, torch.Tensor]:
    """The UNet's output for noise, and the states of a caption."""
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([500, 20])
    sizes = torch.tensor([[32.0, 32, 0, 0, 32, 32]] * 2) if base.family.name == "sdxl" else None
    with torch.no_grad():
        text = base.text.encode(base.text.tokenize(["a photo of a dog", "the cat"]))
        return base.denoise(x, t, text, sizes).clone(), text.states.clone()


@contextmanager
def learned(base: DiffusionBase, kind: LoraKind, targets: LoraTargets) -> Iterator[Layers]:
    """Layers in all components, as if they had been trained: every parameter is moved at random."""
    generator = torch.Generator().manual_seed(1)
    with ExitStack() as stack:
        layers = {}
        for name, model in base.components.items():
            paths = learning_targets(base, name, targets)
            layers[name] = stack.enter_context(lora_layers(model, paths, LayerOptions(RANK, ALPHA, kind), generator))
            for layer in layers[name].values():
                for parameter in layer.parameters.values():
                    parameter.data += torch.randn(parameter.shape, generator=generator) * 0.1
        yield layers


def trained(base: DiffusionBase, kind: LoraKind, targets: LoraTargets) -> tuple[LoraWeights, tuple[torch.Tensor, ...]]:
    """The LoRA in memory, and the base's output while it learned."""
    with learned(base, kind, targets) as layers:
        return TrainedAdapter(None, layers).weights((), {}), output(base)


def holds(lora_format: str, kind: str, targets: str) -> bool:
    """Return True if the inputs' check lets the format hold them."""
    lora_format = "kohya" if lora_format == "comfyui" else lora_format  # the same for a UNet
    try:
        TrainConfig.of({"lora_format": lora_format, "lora_kind": kind, "lora_targets": targets})
    except InputError:
        return False
    return True


@pytest.mark.parametrize(
    ("family", "targets"), [*(("sd1", each) for each in TARGETS), ("sdxl", "all-linear"), ("sdxl", "kohya+conv")]
)
@pytest.mark.parametrize("kind", KINDS)
def test_the_file_of_every_format_draws_what_the_training_saw(
    kind: LoraKind, targets: LoraTargets, family: str, tmp_path: Path
) -> None:
    base = small_base(family=family)
    before, bare = hashes(base), output(base)
    weights, expected = trained(base, kind, targets)
    assert hashes(base) == before
    assert all((theirs - ours).abs().max() > 1e-3 for theirs, ours in zip(expected, bare, strict=True))
    patcher, path, written = Patcher(base.components, base.tokenizers), tmp_path / "lora.safetensors", []
    for lora_format in [name for name in FORMAT_NAMES if name != "comfyui"]:  # which is kohya's for these bases
        held = holds(lora_format, kind, targets) and not (family == "sdxl" and lora_format == "cloneofsimo")
        if lora_format == "embedding" or not held:
            # By the numbers of the cloneofsimo format, attention alone fits bases of other widths than 1.x's.
            if (lora_format, targets) != ("cloneofsimo", "attention"):
                with pytest.raises(LoraFileError):
                    write_lora(path, weights, format=lora_format, dtype=torch.float32)
            continue
        write_lora(path, weights, format=lora_format, dtype=torch.float32)
        written.append(lora_format)
        report = patcher.apply([(read_lora(path), Scale(1.0, 1.0))])
        assert report.unmatched == ()
        for ours, theirs in zip(output(base), expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=3e-4, rtol=1e-3)
        patcher.restore()
    assert hashes(base) == before
    assert written[0] == "kohya"
    assert ("diffusers" in written) == (kind != "lokr")


@pytest.mark.parametrize("lora_format", ["kohya", "diffusers"])
@pytest.mark.parametrize(("kind", "targets"), [("rslora", "kohya+conv"), ("lora", "attention+ff+conv")])
def test_plain_diffusers_draws_what_the_training_saw(
    kind: LoraKind, targets: LoraTargets, lora_format: str, tmp_path: Path
) -> None:
    base = small_base()
    weights, expected = trained(base, kind, targets)
    write_lora(tmp_path / "lora.safetensors", weights, format=lora_format, dtype=torch.float32)
    pipeline = pipeline_of(base)
    pipeline.load_lora_weights(tmp_path / "lora.safetensors")
    for ours, theirs in zip(output(base), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=3e-4, rtol=1e-3)


def test_the_kinds_are_written_as_other_tools_read_them(tmp_path: Path) -> None:
    base, path = small_base(), tmp_path / "lora.safetensors"
    for kind, suffixes in {
        "lora": {"lora_down.weight", "lora_up.weight", "alpha"},
        "rslora": {"lora_down.weight", "lora_up.weight", "alpha"},
        "dora": {"lora_down.weight", "lora_up.weight", "alpha", "dora_scale"},
        "lokr": {"lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "alpha"},
    }.items():
        weights, _ = trained(base, kind, "kohya+conv")  # type: ignore[arg-type]
        write_lora(path, weights)
        keys = _keys(path)
        assert {key.partition(".")[2] for key in keys} == suffixes
        assert {key.split("_")[1] for key in keys} == {"unet", "te"}
    down = weights.layers["unet"]
    assert all(isinstance(change, LokrLayer) for change in down.values())


def test_rslora_is_written_with_the_alpha_by_which_alpha_over_rank_is_its_scale(tmp_path: Path) -> None:
    weights, _ = trained(small_base(), "rslora", "attention")
    assert weights.alpha / weights.rank == pytest.approx(ALPHA / RANK**0.5)
    write_lora(tmp_path / "lora.safetensors", weights)
    assert read_lora(tmp_path / "lora.safetensors").alpha == pytest.approx(ALPHA * RANK**0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_step_sees_the_base(kind: LoraKind) -> None:
    base = small_base()
    bare = output(base)
    with ExitStack() as stack:
        for name, model in base.components.items():
            paths = learning_targets(base, name, "kohya+conv")
            options = LayerOptions(RANK, ALPHA, kind)
            stack.enter_context(lora_layers(model, paths, options, torch.Generator().manual_seed(1)))
        for ours, theirs in zip(output(base), bare, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_counted_as_peft_makes_them(kind: LoraKind, targets: LoraTargets) -> None:
    base = small_base()
    paths = learning_targets(base, "unet", targets)
    counted = sum(parameter_count(tuple(layer.weight.shape), RANK, kind) for layer in paths.values())
    with lora_layers(base.unet, paths, LayerOptions(RANK, ALPHA, kind), torch.Generator()) as layers:
        assert counted == sum(p.numel() for layer in layers.values() for p in layer.parameters.values())


def test_every_layer_that_gets_a_lora_has_a_gradient_and_xls_unused_one_gets_none() -> None:
    base = small_base(family="sdxl")
    everywhere = targets_in("text_encoder", base.components["text_encoder"], "kohya", SD1)
    with learned(base, "lora", "kohya") as layers:
        assert {path for path in everywhere if path not in layers["text_encoder"]} == {
            path for path in everywhere if ".layers.1." in path
        }
        embeds = base.text.encode(base.text.tokenize(["a photo of a dog"]))
        assert embeds.pooled is not None
        (embeds.states.square().sum() + embeds.pooled.square().sum()).backward()
        for name in base.text.encoders:
            for path, layer in layers[name].items():
                gradients = [p.grad for p in layer.parameters.values()]
                assert all(g is not None and g.abs().sum() > 0 for g in gradients), f"{name}.{path}"


@pytest.mark.parametrize("targets", TARGETS)
def test_target_sets_are_the_layers_that_they_name(targets: LoraTargets) -> None:
    base = small_base()
    endings = {path.rpartition("transformer_blocks.0.")[2] for path in targets_in("unet", base.unet, targets, SD1)}
    assert ("ff.net.0.proj" in endings) == (targets != "attention")
    assert ("ff.net.2" in endings) == (targets not in ("attention", "attention+geglu"))
    layers = targets_in("unet", base.unet, targets, SD1)
    kernels = {layer.kernel_size for layer in layers.values() if isinstance(layer, nn.Conv2d)}
    assert ((3, 3) in kernels) == targets.endswith("+conv")
    assert any(path.endswith("proj_in") for path in layers) == targets.startswith("kohya")  # convolutions in 1.x
    text = targets_in("text_encoder", base.components["text_encoder"], targets, SD1)
    assert any(path.endswith("fc1") for path in text) == targets.startswith(("kohya", "all"))
    if targets == "all-linear":
        assert set(layers) == {path for path, layer in base.unet.named_modules() if isinstance(layer, nn.Linear)}


@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        ({"lora_kind": "lokr", "lora_format": "diffusers"}, "lora_format"),
        ({"lora_kind": "lokr", "lora_format": "cloneofsimo"}, "lora_format"),
        ({"lora_kind": "dora", "lora_format": "cloneofsimo"}, "lora_format"),
        ({"lora_targets": "kohya", "lora_format": "cloneofsimo"}, "lora_targets"),
        ({"lora_kind": "lokr", "lora_plus_ratio": 4}, "lora_plus_ratio"),
    ],
)
def test_what_a_format_or_a_kind_cannot_hold_is_refused_before_the_training(
    inputs: dict[str, object], field: str
) -> None:
    with raises(InputError, field=field):
        TrainConfig.of(inputs)


def test_lokr_without_a_rank_keeps_its_scale() -> None:
    linear = nn.Sequential(nn.Linear(8, 8, bias=False))
    with lora_layers(linear, ["0"], LayerOptions(4, 2.0, "lokr"), torch.Generator().manual_seed(0)) as layers:
        for parameter in layers["0"].parameters.values():
            nn.init.normal_(parameter)
        change, weight = layers["0"].change(), linear[0].base_layer.weight
        x = torch.randn(3, 8)
        expected = linear(x) - x @ weight.T
    assert change.rank == 0
    torch.testing.assert_close(x @ change.delta(weight).T, expected, atol=1e-5, rtol=1e-4)


def test_dora_keeps_its_magnitudes_by_output() -> None:
    weights, _ = trained(small_base(), "dora", "kohya+conv")
    assert all(isinstance(change, DoraLayer) and change.by_row for _, _, change in weights)


def _keys(path: Path) -> set[str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return set(file.keys())
