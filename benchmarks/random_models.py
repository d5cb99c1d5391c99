"""Full-size models of each family with random weights, on which speed and memory do not depend.

The models are built from the configurations that single-file checkpoints are loaded with.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from lora_service.models.components import Components
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.families.sd1 import SD1, SD15
from lora_service.models.families.sd2 import SD2, SD21
from lora_service.models.families.sdxl import SDXL, SDXL_BASE
from lora_service.models.loading import assemble
from lora_service.models.single_file import CONFIGS

Model = TypeVar("Model", bound=nn.Module)

DEFAULTS = {"sd15": SD15, "sd21": SD21, "sdxl": SDXL_BASE}
"""The defaults of each model; its name is that of the folder of its configurations."""
FAMILY = {"sd15": SD1, "sd21": SD2, "sdxl": SDXL}
"""The family of each."""


def bare_unet(family: str = "sd15") -> UNet2DConditionModel:
    """Return a UNet on the meta device, without values: 860 million weights for SD 1.5, 2,567 million for XL."""
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(CONFIGS / family / "unet"))


def bare_vae(family: str = "sd15") -> AutoencoderKL:
    """Return a VAE on the meta device: 84 million weights."""
    with torch.device("meta"):
        return AutoencoderKL.from_config(AutoencoderKL.load_config(CONFIGS / family / "vae"))


def bare_text_encoder(family: str = "sd15", part: str = "text_encoder") -> CLIPTextModel:
    """Return a text encoder on the meta device: 123 million weights for SD 1.5, 695 million for XL's second."""
    config = CLIPTextConfig.from_pretrained(CONFIGS / family / part)
    with torch.device("meta"):
        return (CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel)(config)


def with_positions(model: CLIPTextModel) -> CLIPTextModel:
    """Fill the one buffer of ``model``, the position ids, which has no value on the meta device."""
    embeddings = getattr(model, "text_model", model).embeddings
    embeddings.position_ids = torch.arange(77, device=model.device).unsqueeze(0)
    return model


def unet(dtype: torch.dtype, device: torch.device, family: str = "sd15") -> UNet2DConditionModel:
    """Return a UNet of random weights."""
    return _with_random_weights(bare_unet(family), dtype, device)


def text_encoder(
    dtype: torch.dtype, device: torch.device, family: str = "sd15", part: str = "text_encoder"
) -> CLIPTextModel:
    """Return a text encoder of random weights."""
    return with_positions(_with_random_weights(bare_text_encoder(family, part), dtype, device))


def random_components(family: str, dtype: torch.dtype, device: torch.device, *, small_vae: bool = False) -> Components:
    """Return all components of a base of random weights.

    Args:
        small_vae: take the smallest VAE of factor 8, for benchmarks that do not measure it.
    """
    encoders = _encoders(family)
    return Components(
        family=FAMILY[family],
        backbone=unet(dtype, device, family),
        vae=_small_vae() if small_vae else vae(dtype, device, family),
        text_encoders={part: text_encoder(dtype, device, family, part) for part in encoders},
        tokenizers={part: full_size_tokenizer() for part in encoders},
        scheduler_config=json.loads((CONFIGS / family / "scheduler" / "scheduler_config.json").read_text()),
        pipeline_config={"force_zeros_for_empty_prompt": family == "sdxl"},
    )


def vae(dtype: torch.dtype, device: torch.device, family: str = "sd15") -> AutoencoderKL:
    """Return a VAE of random weights, in the dtype that the service uses beside a UNet of ``dtype``."""
    bare = bare_vae(family)
    return _with_random_weights(bare, FAMILY[family].vae_dtype(bare.config, dtype), device)


def write_folder(family: str, folder: Path, dtype: torch.dtype) -> None:
    """Write a base of random weights in diffusers' layout, with one part in memory at a time."""
    cpu = torch.device("cpu")
    shutil.copytree(CONFIGS / family, folder)
    unet(dtype, cpu, family).save_pretrained(folder / "unet")
    vae(dtype, cpu, family).save_pretrained(folder / "vae")
    for part in _encoders(family):
        text_encoder(dtype, cpu, family, part).save_pretrained(folder / part)
        full_size_tokenizer().save_pretrained(folder / part.replace("text_encoder", "tokenizer"))


def _encoders(family: str) -> list[str]:
    return [path.name for path in sorted((CONFIGS / family).glob("text_encoder*"))]


def base(family: str, side: int, dtype: torch.dtype, device: torch.device, *, small_vae: bool = False) -> DiffusionBase:
    """Return a whole base of random weights, whose default resolution is ``side``."""
    components = random_components(family, dtype, device, small_vae=small_vae)
    return assemble(f"full-size {family}", components, replace(DEFAULTS[family], resolution=side), device, dtype)


def small_tokenizer() -> CLIPTokenizer:
    """Return a tokenizer of single characters, for tests that do not need a full-size vocabulary."""
    entries = [*map(chr, range(33, 127)), *(chr(code) + "</w>" for code in range(33, 127))]
    entries += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={entry: number for number, entry in enumerate(entries)}, merges=[])


def full_size_tokenizer() -> CLIPTokenizer:
    """Return a tokenizer with as many entries as CLIP's, so that new tokens get ids past the 49,408 embeddings."""
    words = sorted(entry for entry in small_tokenizer().get_vocab() if not entry.startswith("<|"))
    entries = [*words, *(f"filler{i}</w>" for i in range(49406 - len(words))), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def _small_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 32, 32),
    )


@torch.no_grad()
def _with_random_weights(model: Model, dtype: torch.dtype, device: torch.device) -> Model:
    nn.Module.to(model, dtype).to_empty(
        device=device
    )  # cast while it has no values, so that no weight is in memory twice
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(float(name.endswith("weight")))
        else:
            parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
    return model.eval().requires_grad_(False)
