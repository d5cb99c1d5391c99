"""LoHa, LoKr and DoRA against peft's own layers, and files of them against the formulas."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn

from lora_service.errors import LoraFileError
from lora_service.lora.files import read_lora, write_lora
from lora_service.lora.weights import LoraWeights, WeightChange
from tests.errors import raises
from tests.lora.lora_fakes import save

KEY = "lora_unet_down_blocks_0_attentions_0_proj_in"
PATH = "down_blocks.0.attentions.0.proj_in"
RANK, ALPHA = 2, 3.0


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj_in = nn.Linear(12, 20, bias=False)


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj_in = nn.Conv2d(12, 20, 3, bias=False)


CONFIGURATIONS = {
    "LoRA": LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["proj_in"], init_lora_weights=False),
    "DoRA": LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["proj_in"], init_lora_weights=False, use_dora=True),
    "LoHa": LoHaConfig(r=RANK, alpha=ALPHA, target_modules=["proj_in"], init_weights=False),
    "LoHa with a core": LoHaConfig(
        r=RANK, alpha=ALPHA, target_modules=["proj_in"], init_weights=False, use_effective_conv2d=True
    ),
    "LoKr": LoKrConfig(r=RANK, alpha=ALPHA, target_modules=["proj_in"], init_weights=False, decompose_factor=2),
    "LoKr of two splits": LoKrConfig(
        r=1, alpha=ALPHA, target_modules=["proj_in"], init_weights=False, decompose_both=True, decompose_factor=4
    ),
    "LoKr with a core": LoKrConfig(
        r=RANK,
        alpha=ALPHA,
        target_modules=["proj_in"],
        init_weights=False,
        use_effective_conv2d=True,
        decompose_factor=2,
    ),
}


def trained_by_peft(kind: str, base: nn.Module) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Return the base's weight, peft's tensors by key suffix, and the weight that peft merges them to."""
    weight = base.proj_in.weight.detach().clone()
    model = get_peft_model(base, CONFIGURATIONS[kind])
    tensors = {}
    for name, parameter in model.named_parameters():
        if "magnitude" in name:  # it is initialised as the norms, where it changes nothing
            parameter.data *= torch.linspace(0.5, 2, parameter.numel()).reshape_as(parameter)
        _, _, suffix = name.partition("proj_in.")
        if ".default" in f".{suffix}":
            tensors[suffix.replace(".default", "")] = parameter.detach().clone()
    model.merge_adapter()
    return weight, tensors, model.base_model.model.proj_in.base_layer.weight.detach()


def only_change(weights: LoraWeights) -> WeightChange:
    ((component, path, change),) = weights
    assert (component, path) == ("unet", PATH)
    return change


@pytest.mark.parametrize("base", [Linear, Convolution])
@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_the_change_of_each_kind_is_what_peft_merges(kind: str, base: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    weight, tensors, merged = trained_by_peft(kind, base())
    suffixes = {
        "lora_A.weight": "lora_down.weight",
        "lora_B.weight": "lora_up.weight",
        "lora_magnitude_vector.weight": "dora_scale",
    }
    file = {f"{KEY}.{suffixes.get(suffix, suffix)}": tensor for suffix, tensor in tensors.items()}
    file[f"{KEY}.alpha"] = torch.tensor(ALPHA)
    for key, tensor in list(file.items()):
        if key.endswith("dora_scale"):
            file[key] = tensor.reshape(20, *[1] * (weight.dim() - 1))  # as LyCORIS shapes it
    lora = read_lora(save(tmp_path / "lora.safetensors", file))
    change = only_change(lora)
    assert change.kind.split()[0] == kind.split()[0]
    torch.testing.assert_close(weight + change.delta(weight), merged)

    write_lora(tmp_path / "again.safetensors", lora, dtype=torch.float32)
    again = only_change(read_lora(tmp_path / "again.safetensors"))
    torch.testing.assert_close(again.delta(weight), change.delta(weight))
    if change.norm() is not None:
        assert change.norm() == pytest.approx(change.delta(weight).norm().item(), rel=1e-4)


@pytest.mark.parametrize("base", [Linear, Convolution])
def test_a_dora_file_of_peft_is_read_and_written_for_diffusers(base: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    weight, tensors, merged = trained_by_peft("DoRA", base())
    file = {f"unet.{PATH}.{suffix}": tensor for suffix, tensor in tensors.items()}
    config = {"lora_adapter_metadata": f'{{"unet.lora_alpha": {ALPHA}}}'}
    lora = read_lora(save(tmp_path / "lora.safetensors", file, config))
    torch.testing.assert_close(weight + only_change(lora).delta(weight), merged)
    write_lora(tmp_path / "again.safetensors", lora, format="diffusers", dtype=torch.float32)
    again = only_change(read_lora(tmp_path / "again.safetensors"))
    torch.testing.assert_close(weight + again.delta(weight), merged)
    written = load_file(tmp_path / "again.safetensors")
    assert written[f"unet.{PATH}.lora_magnitude_vector"].shape == tensors["lora_magnitude_vector.weight"].shape


def test_magnitudes_per_column_are_the_norms_of_the_changed_columns(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, down, up = (torch.randn(shape, generator=generator) for shape in ((5, 3), (2, 3), (5, 2)))
    norms = torch.tensor([[1.0, 2.0, 3.0]])
    tensors = {f"{KEY}.lora_down.weight": down, f"{KEY}.lora_up.weight": up, f"{KEY}.dora_scale": norms}
    change = only_change(read_lora(save(tmp_path / "lora.safetensors", tensors)))
    changed = weight + change.delta(weight)
    torch.testing.assert_close(changed.norm(dim=0, keepdim=True), norms)
    with raises(LoraFileError, code="unsupported_by_format"):
        write_lora(tmp_path / "again.safetensors", read_lora(tmp_path / "lora.safetensors"), format="diffusers")
    torch.testing.assert_close(
        nn.functional.normalize(changed, dim=0), nn.functional.normalize(weight + up @ down, dim=0)
    )


def test_a_dora_file_read_as_plain_lora_would_be_wrong(tmp_path: Path) -> None:
    """Show that tools which ignore ``dora_scale`` change weights far from the trained change."""
    torch.manual_seed(0)
    weight, tensors, merged = trained_by_peft("DoRA", Linear())
    plain = weight + ALPHA / RANK * tensors["lora_B.weight"] @ tensors["lora_A.weight"]
    assert (plain - merged).norm() > 0.5 * (merged - weight).norm()


@pytest.mark.parametrize("shape", [(4,), (1, 5), (6, 1)])
def test_magnitudes_that_fit_neither_rows_nor_columns_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    tensors = {f"{KEY}.lora_down.weight": torch.ones(2, 3), f"{KEY}.lora_up.weight": torch.ones(5, 2)}
    tensors[f"{KEY}.dora_scale"] = torch.ones(shape)
    with raises(LoraFileError, code="shape_mismatch"):
        read_lora(save(tmp_path / "lora.safetensors", tensors))


@pytest.mark.parametrize("lora_format", ["diffusers", "cloneofsimo"])
@pytest.mark.parametrize("kind", ["LoHa", "LoKr"])
def test_kinds_that_a_format_cannot_hold_are_refused_when_written(kind: str, lora_format: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    _, tensors, _ = trained_by_peft(kind, Linear())
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    lora = read_lora(save(tmp_path / "lora.safetensors", {f"{key}.{suffix}": t for suffix, t in tensors.items()}))
    with raises(LoraFileError, code="unsupported_by_format") as caught:
        write_lora(tmp_path / "again.safetensors", lora, format=lora_format)
    assert kind in str(caught.value)
    assert not (tmp_path / "again.safetensors").exists()
