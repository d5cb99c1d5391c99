"""Full-size Stable Diffusion 1.5 models with weights derived from the parameters' names: no checkpoint is needed."""

from __future__ import annotations

import zlib

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from benchmarks.random_models import bare_text_encoder, bare_unet, with_positions


def full_size_unet() -> UNet2DConditionModel:
    """Return the UNet of Stable Diffusion 1.5."""
    return _with_named_weights(bare_unet())


def full_size_text_encoder() -> CLIPTextModel:
    """Return the text encoder of Stable Diffusion 1.5."""
    return with_positions(_with_named_weights(bare_text_encoder()))


def full_size_tokenizer() -> CLIPTokenizer:
    """Return a tokenizer with as many entries as CLIP's and the same ids of special tokens; its words are fillers."""
    entries = [f"filler{number}</w>" for number in range(49406)] + ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={entry: number for number, entry in enumerate(entries)}, merges=[])


@torch.no_grad()
def _with_named_weights(model: nn.Module) -> nn.Module:
    model.to_empty(device="cpu")
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(float(name.endswith("weight")))
            continue
        generator = torch.Generator().manual_seed(zlib.crc32(name.removeprefix("text_model.").encode()))
        is_embedding_table = "embedding.weight" in name and "time" not in name
        std = 0.02 if is_embedding_table else parameter[0].numel() ** -0.5
        torch.randn(parameter.shape, generator=generator, out=parameter.data)
        parameter.mul_(std)
    return model.eval()
