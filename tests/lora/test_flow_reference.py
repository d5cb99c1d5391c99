"""A file for a transformer changes its weights as diffusers' own loader does; what that cannot read, as its conversion
of whole checkpoints says."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders import lora_conversion_utils, single_file_utils
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from lora_service.lora.files import parse_lora, read_lora, write_lora
from lora_service.lora.patcher import Patcher
from lora_service.lora.safetensors_file import TensorFile
from lora_service.lora.scale import Scale
from lora_service.lora.weights import LoraLayer, LoraWeights
from tests.lora.flow_fakes import (
    BY_NAME,
    NAMES,
    Factors,
    original_loras,
    pipeline_of,
    small_transformer,
    weights_by_path,
)
from tests.lora.lora_fakes import assert_same_state, random_lora, save, state_of

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def through_ours(name: str, path: Path) -> dict[str, Tensor]:
    model = small_transformer(name)
    before = state_of({"transformer": model})
    patcher = Patcher({"transformer": model}, {})
    report = patcher.apply([(read_lora(path), Scale(1.0, 1.0))])
    assert report.unmatched == ()
    patched = weights_by_path(model)
    patcher.restore()
    assert_same_state(before, {"transformer": model})
    return patched


def through_diffusers(name: str, path: Path) -> dict[str, Tensor]:
    model = small_transformer(name)
    pipeline_of(name, model).load_lora_weights(path)
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
    return {path.removesuffix(".base_layer"): weight for path, weight in weights_by_path(model).items()}


def assert_same(name: str, path: Path) -> None:
    base, ours = weights_by_path(small_transformer(name)), through_ours(name, path)
    theirs = through_diffusers(name, path)
    changed = {module for module, weight in ours.items() if not torch.equal(weight, base[module])}
    assert changed
    for module, weight in ours.items():
        torch.testing.assert_close(weight, theirs[module], **TOLERANCE, msg=lambda text, m=module: f"{m}: {text}")


def kohya(prefix: str, name: str, factors: Factors) -> dict[str, Tensor]:
    module = prefix + name
    return {
        f"{module}.lora_down.weight": factors.down,
        f"{module}.lora_up.weight": factors.up,
        f"{module}.alpha": torch.tensor(factors.alpha),
    }


def peft(prefix: str, name: str, factors: Factors) -> dict[str, Tensor]:
    scale = factors.alpha / factors.down.shape[0]
    return {f"{prefix}{name}.lora_A.weight": factors.down, f"{prefix}{name}.lora_B.weight": factors.up * scale}


def flat(prefix: str, name: str, factors: Factors) -> dict[str, Tensor]:
    return kohya(prefix, name.replace(".", "_"), factors)


def in_blocks(name: str) -> bool:
    return "_blocks." in name and not name.endswith("linear1")


def of_kohya_flux2(name: str) -> bool:
    return in_blocks(name) or name.endswith("linear1") or name in ("img_in", "txt_in", "time_in.in_layer")


def all_but_the_last_modulation(name: str) -> bool:
    """Leave out what diffusers' conversion of FLUX.2's LoRAs, unlike that of its checkpoints, does not swap."""
    return name != "final_layer.adaLN_modulation.1"


Layout = tuple[str, Callable[[str, str, Factors], dict[str, Tensor]], str, Callable[[str], bool]]
ORIGINAL_LAYOUTS: Mapping[str, Layout] = {
    "FLUX.2, kohya": ("flux2-klein", flat, "lora_unet_", of_kohya_flux2),
    "FLUX.2, ai-toolkit": ("flux2-klein", peft, "diffusion_model.", all_but_the_last_modulation),
    "FLUX.2, PEFT": ("flux2-klein", peft, "base_model.model.", all_but_the_last_modulation),
    "FLUX.1, kohya": ("flux1", flat, "lora_unet_", in_blocks),
    "FLUX.1, ComfyUI": ("flux1", kohya, "diffusion_model.", in_blocks),
    "Chroma, kohya": ("chroma", flat, "lora_unet_", in_blocks),
    "Krea 2, ComfyUI": ("krea2", peft, "diffusion_model.", lambda _: True),
    "Krea 2, ai-toolkit": ("krea2", peft, "base_model.model.", lambda _: True),
    "Qwen-Image, kohya": ("qwen-image", flat, "lora_unet_", lambda _: True),
    "Qwen-Image, ComfyUI": ("qwen-image", peft, "diffusion_model.", lambda _: True),
}


@pytest.mark.parametrize("layout", ORIGINAL_LAYOUTS)
def test_files_under_the_originals_names_do_the_same_in_diffusers(layout: str, tmp_path: Path) -> None:
    name, write, prefix, wanted = ORIGINAL_LAYOUTS[layout]
    tensors: dict[str, Tensor] = {}
    for module, factors in original_loras(BY_NAME[name], small_transformer(name), wanted).items():
        tensors |= write(prefix, module, factors)
    assert_same(name, save(tmp_path / "lora.safetensors", tensors))


def lora_of(name: str, wanted: Callable[[str], bool] = lambda path: True, **options: Any) -> LoraWeights:
    def targets(path: str, module: nn.Module) -> bool:
        return isinstance(module, nn.Linear) and wanted(path)

    return random_lora({"transformer": small_transformer(name)}, targets=targets, **options)


def path_layout(prefix: str, down: str, up: str, alpha: bool, *, is_flat: bool = False) -> Callable[[LoraWeights], Any]:
    def write(lora: LoraWeights) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for _, path, layer in lora:
            assert isinstance(layer, LoraLayer)
            module = prefix + (path.replace(".", "_") if is_flat else path)
            factors = (layer.down, layer.up) if alpha else layer.scaled_pair()
            tensors |= {f"{module}.{down}.weight": factors[0], f"{module}.{up}.weight": factors[1]}
            tensors |= {f"{module}.alpha": torch.tensor(layer.alpha)} if alpha else {}
        return tensors

    return write


PEFT_LAYOUT = path_layout("transformer.", "lora_A", "lora_B", False)
PATH_LAYOUTS: Mapping[str, tuple[str, Callable[[LoraWeights], Any], Callable[[str], bool]]] = {
    **{f"{name}, PEFT": (name, PEFT_LAYOUT, lambda _: True) for name in NAMES},
    "zimage, ai-toolkit": (
        "zimage",
        path_layout("diffusion_model.", "lora_A", "lora_B", False),
        lambda path: "-" not in path,
    ),
    "zimage, kohya": (
        "zimage",
        path_layout("lora_unet_", "lora_down", "lora_up", True, is_flat=True),
        lambda path: path.startswith(("layers", "noise_refiner")),
    ),
    "qwen-image, without a prefix": (
        "qwen-image",
        path_layout("", "lora_A.default", "lora_B.default", False),
        lambda _: True,
    ),
    "flux1, OneTrainer": (
        "flux1",
        path_layout("lora_transformer_", "lora_down", "lora_up", True, is_flat=True),
        lambda path: ".attn." in path or path in ("x_embedder", "proj_out"),
    ),
    "flux2-klein, paths behind ComfyUI's prefix": (
        "flux2-klein",
        path_layout("diffusion_model.", "lora_A", "lora_B", False),
        lambda path: path.startswith(("transformer_blocks", "single_transformer")),
    ),
}


@pytest.mark.parametrize("layout", PATH_LAYOUTS)
def test_files_under_paths_do_the_same_in_diffusers(layout: str, tmp_path: Path) -> None:
    name, write, wanted = PATH_LAYOUTS[layout]
    tensors = write(lora_of(name, wanted, alpha=2.0))
    assert_same(name, save(tmp_path / "lora.safetensors", tensors))


def test_a_file_of_xlabs_does_the_same_in_diffusers(tmp_path: Path) -> None:
    processors = {"img_attn.qkv": "qkv_lora1", "img_attn.proj": "proj_lora1", "txt_attn.qkv": "qkv_lora2"}
    tensors = {}
    for module, factors in original_loras(BY_NAME["flux1"], small_transformer("flux1"), in_blocks).items():
        block, _, layer = re.fullmatch(r"(\w+\.\d+)(\.)(.+)", module).groups()  # type: ignore[union-attr]
        if layer in processors:
            key = f"{block}.processor.{processors[layer]}"
            tensors |= {f"{key}.down.weight": factors.down, f"{key}.up.weight": factors.up}
    assert_same("flux1", save(tmp_path / "lora.safetensors", tensors))


def test_a_lokr_of_z_image_does_the_same_in_diffusers(tmp_path: Path) -> None:
    torch.manual_seed(3)
    tensors = {
        f"diffusion_model.layers.{number}.attention.{layer}.{suffix}": torch.randn(shape) * 0.3
        for number in (0, 1)
        for layer in ("to_q", "to_out.0")
        for suffix, shape in {"lokr_w1": (4, 4), "lokr_w2_a": (4, 1), "lokr_w2_b": (1, 4)}.items()
    }
    tensors |= {key.replace("lokr_w1", "alpha"): torch.tensor(0.5) for key in tensors if key.endswith("lokr_w1")}
    assert_same("zimage", save(tmp_path / "lora.safetensors", tensors))


def test_what_diffusers_writes_does_the_same_through_ours(tmp_path: Path) -> None:
    """Compare a file that holds its adapter's configuration in the header, with a rank that is not alpha."""
    torch.manual_seed(0)
    model = small_transformer("zimage")
    patterns = {"to_v": 2}
    config = LoraConfig(
        r=3, lora_alpha=5, target_modules=["to_q", "to_v", "w1"], init_lora_weights=False, alpha_pattern=patterns
    )
    model.add_adapter(config)
    pipeline_of("zimage", model).save_lora_weights(
        tmp_path,
        transformer_lora_layers=get_peft_model_state_dict(model),
        transformer_lora_adapter_metadata=model.peft_config["default"].to_dict(),
    )
    path = tmp_path / "pytorch_lora_weights.safetensors"
    assert {change.alpha for _, _, change in read_lora(path)} == {2.0, 5.0}
    assert_same("zimage", path)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lora_format", ["kohya", "diffusers"])
def test_what_we_write_does_the_same_in_diffusers(name: str, lora_format: str, tmp_path: Path) -> None:
    wanted: Callable[[str], bool] = lambda path: True  # noqa: E731
    if lora_format == "kohya":
        if name == "sd3":
            pytest.skip("diffusers reads no file of Stable Diffusion 3 but those under its own names")
        # Its conversions assume FLUX.1's own widths, and leave some modules outside of blocks out.
        if name in ("flux1", "chroma"):
            wanted = lambda path: path.startswith("transformer_blocks") or path.endswith("single.proj_out")  # noqa: E731
        if name == "flux2-klein":
            wanted = lambda path: path != "norm_out.linear"  # noqa: E731
        if name == "zimage":
            wanted = lambda path: "-" not in path  # noqa: E731
    write_lora(tmp_path / "lora.safetensors", lora_of(name, wanted, alpha=2.0), format=lora_format, dtype=torch.float32)
    assert_same(name, tmp_path / "lora.safetensors")


CONVERSIONS: Mapping[str, Callable[..., dict[str, Tensor]]] = {
    "flux2-klein": single_file_utils.convert_flux2_transformer_checkpoint_to_diffusers,
    "zimage": single_file_utils.convert_z_image_transformer_checkpoint_to_diffusers,
    "sd3": single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers,
}


class _Checkpoint(dict[str, Tensor]):
    """A checkpoint in which everything that no LoRA changes is zero."""

    def pop(self, key: str, *default: Any) -> Any:
        return super().pop(key) if key in self else torch.zeros(12)


@pytest.mark.parametrize("name", CONVERSIONS)
@pytest.mark.parametrize("write", [flat, kohya, peft])
def test_every_original_module_is_changed_as_a_checkpoint_is_converted(
    name: str, write: Callable[[str, str, Factors], dict[str, Tensor]], tmp_path: Path
) -> None:
    factors = original_loras(BY_NAME[name], small_transformer(name))
    checkpoint = _Checkpoint({f"{module}.weight": each.delta for module, each in factors.items()})
    expected = {
        key.removesuffix(".weight"): delta
        for key, delta in CONVERSIONS[name](checkpoint).items()
        if key.endswith(".weight") and delta.dim() == 2
    }
    tensors: dict[str, Tensor] = {}
    for module, each in factors.items():
        tensors |= write("lora_unet_" if write is flat else "diffusion_model.", module, each)
    lora = read_lora(save(tmp_path / "lora.safetensors", tensors))
    assert set(lora.layers["transformer"]) == set(expected)
    for path, change in lora.layers["transformer"].items():
        torch.testing.assert_close(change.delta(torch.zeros(change.shape)), expected[path], **TOLERANCE)


def test_full_size_fused_projections_of_flux1_are_split_as_in_diffusers() -> None:
    torch.manual_seed(0)
    modules = {
        "single_blocks_0_linear1": (21504, 3072),
        "double_blocks_3_txt_attn_qkv": (9216, 3072),
        "final_layer_adaLN_modulation_1": (6144, 3072),
    }
    tensors = {}
    for name, (rows, columns) in modules.items():
        tensors |= {f"lora_unet_{name}.lora_down.weight": torch.randn(2, columns)}
        tensors |= {f"lora_unet_{name}.lora_up.weight": torch.randn(rows, 2)}
    lora = parse_lora(TensorFile(tensors))
    theirs = lora_conversion_utils._convert_kohya_flux_lora_to_diffusers(dict(tensors))
    paths = {key.removesuffix(".lora_A.weight") for key in theirs if key.endswith(".lora_A.weight")}
    assert {path.removeprefix("transformer.") for path in paths} == set(lora.layers["transformer"])
    probe = torch.randn(3072)
    for path in paths:
        layer = lora.layers["transformer"][path.removeprefix("transformer.")]
        assert isinstance(layer, LoraLayer)
        expected = theirs[f"{path}.lora_B.weight"] @ (theirs[f"{path}.lora_A.weight"] @ probe)
        torch.testing.assert_close(layer.alpha / layer.rank * (layer.up @ (layer.down @ probe)), expected)
