"""Every module of the full-size models keeps its name through the formats, and diffusers reads what kohya files hold.

The models are on the meta device: names and shapes without memory.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.loaders import lora_conversion_utils
from diffusers.utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft
from torch import nn

from benchmarks.random_models import bare_text_encoder, bare_unet
from lora_service.lora.base_detection import detect_lora_base
from lora_service.lora.formats import diffusers, kohya
from lora_service.lora.safetensors_file import TensorFile
from lora_service.lora.weights import LoraLayer, LoraWeights

ENCODERS = {"sd15": ("text_encoder",), "sd21": ("text_encoder",), "sdxl": ("text_encoder", "text_encoder_2")}
BASES = {"sd15": "Stable Diffusion 1.x", "sd21": "Stable Diffusion 2.x", "sdxl": "Stable Diffusion XL"}


def layer(module: nn.Module) -> LoraLayer:
    out_channels, in_channels, *kernel = module.weight.shape
    return LoraLayer(
        torch.empty(1, in_channels, *kernel, device="meta"),
        torch.empty(out_channels, 1, *[1] * len(kernel), device="meta"),
        1.0,
    )


def layers_of(model: nn.Module) -> dict[str, LoraLayer]:
    return {
        path.removeprefix("text_model."): layer(module)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


@cache
def every_module(family: str) -> LoraWeights:
    """Return a LoRA that changes every linear layer and convolution."""
    encoders = {part: layers_of(bare_text_encoder(family, part)) for part in ENCODERS[family]}
    return LoraWeights({"unet": layers_of(bare_unet(family)), **encoders})


def names(weights: LoraWeights) -> dict[str, set[str]]:
    return {component: set(layers) for component, layers in weights.layers.items()}


def on_the_cpu(file: TensorFile) -> TensorFile:
    """Return a file with an alpha that can be read; the other tensors stay without memory."""
    tensors = {key: torch.tensor(1.0) if key.endswith("alpha") else tensor for key, tensor in file.tensors.items()}
    return replace(file, tensors=tensors)


@pytest.mark.parametrize("family", ENCODERS)
@pytest.mark.parametrize("module", [kohya, diffusers])
def test_every_module_keeps_its_name(family: str, module: Any) -> None:
    lora = every_module(family)
    assert names(module.read(on_the_cpu(module.write(lora)))) == names(lora)


@pytest.mark.parametrize("family", ENCODERS)
@pytest.mark.parametrize("components", [("unet", "text_encoder", "text_encoder_2"), ("unet",), ("text_encoder",)])
def test_diffusers_knows_every_name_of_a_kohya_file(family: str, components: tuple[str, ...]) -> None:
    """Compare names alone: diffusers' conversion moves the values under other keys, whatever they are."""
    full = every_module(family)
    version = {"ss_base_model_version": "sdxl_base_v1-0"} if family == "sdxl" else {}
    lora = LoraWeights({name: full.layers[name] for name in components if name in full.layers}, metadata=version)
    file = kohya.write(lora)
    keys: dict[str, Any] = {key: key for key in file.tensors if not key.endswith("alpha")}
    mapped = lora_conversion_utils._maybe_map_sgm_blocks_to_diffusers(keys, SimpleNamespace(layers_per_block=2))
    converted, _ = lora_conversion_utils._convert_non_diffusers_lora_to_diffusers(mapped)
    unet = convert_unet_state_dict_to_peft({k: v for k, v in converted.items() if k.startswith("unet.")})
    text = {k: v for k, v in converted.items() if not k.startswith("unet.")}
    text = convert_state_dict_to_peft(text) if text else text
    read = {key.removesuffix(".lora_A.weight") for key in (*unet, *text) if key.endswith(".lora_A.weight")}
    expected = {
        f"{component}.{path}" if component == "unet" else f"{component}.text_model.{path}"
        for component, path, _ in lora
        if path != "text_projection"  # diffusers 0.42 does not turn its key into PEFT's, whoever wrote it
    }
    assert read == expected


@pytest.mark.parametrize("family", ENCODERS)
def test_kohya_files_name_blocks_and_encoders_as_kohya_does(family: str) -> None:
    keys = set(kohya.write(every_module(family)).tensors)
    if family == "sdxl":
        assert not [key for key in keys if "down_blocks" in key or "up_blocks" in key or "mid_block" in key]
        assert {key.split("_")[1] for key in keys} == {"unet", "te1", "te2"}
        for name in ("input_blocks_3_0_op", "output_blocks_2_2_conv", "output_blocks_5_2_conv", "input_blocks_0_0"):
            assert f"lora_unet_{name}.lora_down.weight" in keys
    else:
        assert not [key for key in keys if "input_blocks" in key or "output_blocks" in key]
        assert {key.split("_")[1] for key in keys} == {"unet", "te"}


def only(lora: LoraWeights, *, unet: str = "", text: bool = False) -> LoraWeights:
    """Return the modules of the UNet whose path holds ``unet``, and the first text encoder's if asked for."""
    layers = {"unet": {path: layer for path, layer in lora.layers["unet"].items() if unet in path}}
    return LoraWeights(layers | ({"text_encoder": lora.layers["text_encoder"]} if text else {}))


@pytest.mark.parametrize("unet", ["attn2.to_k", "attn2", "attn1", "ff.net"])
def test_xl_is_recognised_without_its_second_encoder(unet: str) -> None:
    lora = only(every_module("sdxl"), unet=unet, text=True)
    keys = kohya.write(lora).tensors
    assert detect_lora_base(lora) == "Stable Diffusion XL"
    assert {key.split("_")[1] for key in keys} == {"unet", "te1"}
    assert not [key for key in keys if "down_blocks" in key or "up_blocks" in key]


@pytest.mark.parametrize("family", ENCODERS)
def test_a_base_is_recognised_by_what_a_lora_of_it_changes(family: str) -> None:
    assert detect_lora_base(every_module(family)) == BASES[family]
    assert detect_lora_base(only(every_module(family), unet="attn2")) == BASES[family]
