"""Published LoRAs' keys and shapes are read whole, each for its family, and fit the full-size transformer.

The lists are facts about public files, as the tests of InvokeAI (tests/backend/patches/lora_conversions) and diffusers'
conversions name them, written down by pattern: a module, the numbers of its blocks, and its shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from lora_service.lora.base_detection import detect_lora_base
from lora_service.lora.files import find_format, parse_lora
from lora_service.lora.merging import fits
from lora_service.lora.safetensors_file import TensorFile
from tests.lora.flow_fakes import BY_NAME, NAMES, full_size_transformer


@dataclass(frozen=True)
class KeyList:
    """The keys of a published file.

    Attributes:
        modules: module, with ``{}`` for a block's number -> the numbers, and the shape of its weight.
        suffixes: of the factors and alpha; ``""`` in place of alpha where there is none.
    """

    family: str
    title: str
    rank: int
    suffixes: tuple[str, str, str]
    modules: Mapping[str, tuple[range | tuple[int, ...], tuple[int, int]]]
    file_format: str

    def tensors(self) -> dict[str, Tensor]:
        down, up, alpha = self.suffixes
        tensors: dict[str, Tensor] = {}
        for name, (rows, columns) in self.weights():
            tensors[f"{name}.{down}"] = torch.randn(columns).expand(self.rank, columns)
            tensors[f"{name}.{up}"] = torch.randn(self.rank).expand(rows, self.rank)
            if alpha:
                tensors[f"{name}.{alpha}"] = torch.tensor(float(self.rank))
        return tensors

    def weights(self) -> Iterator[tuple[str, tuple[int, int]]]:
        for name, (numbers, shape) in self.modules.items():
            yield from ((name.format(number), shape) for number in numbers)


ONCE = (0,)
D, M = 3072, 12288
KOHYA = ("lora_down.weight", "lora_up.weight", "alpha")
PEFT = ("lora_A.weight", "lora_B.weight", "")


def flux1_paths(prefix: str, *, norms: bool) -> dict[str, tuple[range, tuple[int, int]]]:
    double, single = f"{prefix}transformer_blocks.{{}}.", f"{prefix}single_transformer_blocks.{{}}."
    attention = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    modules = {f"{double}attn.{layer}": (range(19), (D, D)) for layer in attention}
    for stream in ("ff", "ff_context"):
        modules |= {f"{double}{stream}.net.0.proj": (range(19), (M, D)), f"{double}{stream}.net.2": (range(19), (D, M))}
    modules |= {f"{single}attn.{layer}": (range(38), (D, D)) for layer in ("to_q", "to_k", "to_v")}
    modules |= {f"{single}proj_mlp": (range(38), (M, D)), f"{single}proj_out": (range(38), (D, D + M))}
    if norms:
        modules |= {f"{double}{norm}.linear": (range(19), (6 * D, D)) for norm in ("norm1", "norm1_context")}
        modules |= {f"{single}norm.linear": (range(38), (3 * D, D))}
    return modules


def flux_originals(prefix: str, separator: str, width: int, double: int, single: int, gate: int, mlp: int):
    """Return the modules of original blocks; a gated MLP has twice the rows."""
    s, block, one = separator, f"{prefix}double_blocks{separator}{{}}{separator}", f"{prefix}single_blocks{separator}"
    modules: dict[str, tuple[range, tuple[int, int]]] = {}
    for stream in ("img", "txt"):
        modules |= {
            f"{block}{stream}_attn{s}qkv": (range(double), (3 * width, width)),
            f"{block}{stream}_attn{s}proj": (range(double), (width, width)),
            f"{block}{stream}_mlp{s}0": (range(double), (gate * mlp * width, width)),
            f"{block}{stream}_mlp{s}2": (range(double), (width, mlp * width)),
        }
    return modules | {
        f"{one}{{}}{s}linear1": (range(single), ((3 + gate * mlp) * width, width)),
        f"{one}{{}}{s}linear2": (range(single), (width, (1 + mlp) * width)),
    }


def krea2_blocks() -> dict[str, tuple[tuple[int, ...], tuple[int, int]]]:
    modules: dict[str, tuple[tuple[int, ...], tuple[int, int]]] = {}
    for block, numbers, width, key_width, mlp in (
        ("lora_unet_blocks_{}", (0, 27), 6144, 1536, 16384),
        ("lora_unet_txtfusion_layerwise_blocks_{}", (0,), 2560, 2560, 6912),
        ("lora_unet_txtfusion_refiner_blocks_{}", (1,), 2560, 2560, 6912),
    ):
        for layer, rows, columns in (
            ("attn_gate", width, width), ("attn_wq", width, width), ("attn_wo", width, width),
            ("attn_wk", key_width, width), ("attn_wv", key_width, width), ("mlp_gate", mlp, width),
            ("mlp_up", mlp, width), ("mlp_down", width, mlp),
        ):  # fmt: skip
            modules[f"{block}_{layer}"] = (numbers, (rows, columns))
    return modules | {
        "lora_unet_first": (ONCE, (6144, 64)),
        "lora_unet_last_linear": (ONCE, (64, 6144)),
        "lora_unet_tmlp_0": (ONCE, (6144, 256)),
        "lora_unet_tmlp_2": (ONCE, (6144, 6144)),
        "lora_unet_tproj_1": (ONCE, (36864, 6144)),
        "lora_unet_txtmlp_1": (ONCE, (6144, 2560)),
        "lora_unet_txtmlp_3": (ONCE, (6144, 6144)),
        "lora_unet_txtfusion_projector": (ONCE, (1, 12)),
    }


def zimage_layers(prefix: str, fused: bool) -> dict[str, tuple[range, tuple[int, int]]]:
    attention = {"attention.qkv": 3, "attention.out": 1} if fused else dict.fromkeys(
        ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0"), 1
    )  # fmt: skip
    modules = {f"{prefix}layers.{{}}.{layer}": (range(30), (n * 3840, 3840)) for layer, n in attention.items()}
    feed_forward = {"w1": (10240, 3840), "w2": (3840, 10240), "w3": (10240, 3840)}
    modules |= {f"{prefix}layers.{{}}.feed_forward.{layer}": (range(30), s) for layer, s in feed_forward.items()}
    return modules | {f"{prefix}layers.{{}}.adaLN_modulation.0": (range(30), (15360, 256))}


QWEN_MODULES = {
    **{f"attn_{layer}": (D, D) for layer in ("to_q", "to_k", "to_v", "to_out_0", "add_k_proj", "add_q_proj")},
    **{f"{stream}_mlp_net_0_proj": (M, D) for stream in ("img", "txt")},
    **{f"{stream}_mlp_net_2": (D, M) for stream in ("img", "txt")},
    **{f"{stream}_mod_1": (6 * D, D) for stream in ("img", "txt")},
}
SD35_BLOCK = {
    "x_block_attn_qkv": (7296, 2432), "x_block_attn_proj": (2432, 2432), "x_block_mlp_fc1": (9728, 2432),
    "x_block_mlp_fc2": (2432, 9728), "context_block_attn_qkv": (7296, 2432),
}  # fmt: skip
XLABS = {
    f"double_blocks.{{}}.processor.{layer}_lora{stream}": ((0, 1, 10), (3 * D if layer == "qkv" else D, D))
    for layer in ("qkv", "proj")
    for stream in (1, 2)
}
LISTS = {
    "FLUX.1 of diffusers": KeyList("flux1", "FLUX.1", 32, PEFT, flux1_paths("transformer.", norms=True), "diffusers"),
    "FLUX.1 of PEFT": KeyList("flux1", "FLUX.1", 4, PEFT, flux1_paths("base_model.model.", norms=False), "diffusers"),
    "FLUX.1 of kohya": KeyList(
        "flux1", "FLUX.1", 16, KOHYA,
        {
            **flux_originals("lora_unet_", "_", D, 19, 38, 1, 4),
            **{f"lora_unet_double_blocks_{{}}_{stream}_mod_lin": (range(19), (6 * D, D)) for stream in ("img", "txt")},
            "lora_unet_single_blocks_{}_modulation_lin": (range(38), (3 * D, D)),
        },
        "kohya",
    ),
    "FLUX.1 of XLabs": KeyList("flux1", "FLUX.1", 16, ("down.weight", "up.weight", ""), XLABS, "diffusers"),
    "FLUX.2 klein 4B of ai-toolkit": KeyList(
        "flux2-klein", "FLUX.2 klein 4B", 16, PEFT, flux_originals("diffusion_model.", ".", D, 5, 20, 2, 3), "comfyui"
    ),
    "FLUX.2 klein 4B of kohya": KeyList(
        "flux2-klein", "FLUX.2 klein 4B", 16, KOHYA, flux_originals("lora_unet_", "_", D, 5, 20, 2, 3), "kohya"
    ),
    "Z-Image of ai-toolkit": KeyList(
        "zimage", "Z-Image", 16, PEFT, zimage_layers("diffusion_model.", fused=False), "comfyui"
    ),
    "Z-Image, fused": KeyList("zimage", "Z-Image", 16, KOHYA, zimage_layers("diffusion_model.", fused=True), "comfyui"),
    "Krea 2 of kohya": KeyList("krea2", "Krea 2", 32, KOHYA, krea2_blocks(), "kohya"),
    "Qwen-Image of kohya": KeyList(
        "qwen-image", "Qwen-Image", 16, KOHYA,
        {f"lora_unet_transformer_blocks_{{}}_{layer}": (range(60), shape) for layer, shape in QWEN_MODULES.items()},
        "kohya",
    ),
    "Qwen-Image without a prefix": KeyList(
        "qwen-image", "Qwen-Image", 64, KOHYA,
        {f"transformer_blocks.{{}}.attn.{layer}": (range(60), (D, D)) for layer in ("to_q", "to_k", "to_v")},
        "diffusers",
    ),
    "Stable Diffusion 3.5 of kohya": KeyList(
        "sd3", "Stable Diffusion 3.5 Large", 16, KOHYA,
        {f"lora_unet_joint_blocks_{{}}_{layer}": (range(38), shape) for layer, shape in SD35_BLOCK.items()},
        "kohya",
    ),
}  # fmt: skip


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {p: tuple(m.weight.shape) for p, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}


@pytest.mark.parametrize("name", LISTS)
def test_a_published_file_is_read_whole_and_fits_its_family(name: str) -> None:
    listed = LISTS[name]
    tensors = listed.tensors()
    assert find_format(tensors, {}).name == listed.file_format
    lora = parse_lora(TensorFile(tensors))
    assert [warning for warning in lora.warnings if "adapter_config.json" not in warning] == []
    assert detect_lora_base(lora) == listed.title
    shapes = shapes_of(full_size_transformer(listed.family))
    changes = lora.layers["transformer"]
    assert {path for path, change in changes.items() if not fits(change, shapes.get(path, ()))} == set()
    # All rows of every module in the file are rows of some module of the transformer.
    assert sum(change.shape[0] for change in changes.values()) == sum(rows for _, (rows, _) in listed.weights())


@pytest.mark.parametrize("name", NAMES)
def test_every_linear_layer_of_a_full_size_transformer_has_an_original(name: str) -> None:
    family = BY_NAME[name]
    for path, shape in shapes_of(full_size_transformer(name)).items():
        module = family.find_path(path)
        assert module is not None, path
        assert path in [each.format(module.number) for each in module.entry.paths]
        assert family.find(module.original) is not None
        assert len(shape) in (2, 4)
