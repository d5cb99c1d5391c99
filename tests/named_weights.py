"""Full-size Stable Diffusion 1.5 models whose weights follow from the parameters' names: no checkpoint is needed."""

from __future__ import annotations

import zlib

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer


def full_size_unet() -> UNet2DConditionModel:
    """The UNet of Stable Diffusion 1.5, 860 million weights."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(320, 640, 1280, 1280),
            layers_per_block=2,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            cross_attention_dim=768,
            attention_head_dim=8,
        )
    return _with_named_weights(unet)


def full_size_text_encoder() -> CLIPTextModel:
    """The text encoder of Stable Diffusion 1.5, 123 million weights."""
    config = CLIPTextConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        hidden_act="quick_gelu",
        vocab_size=49408,
        max_position_embeddings=77,
    )
    with torch.device("meta"):
        model = CLIPTextModel(config)
    model = _with_named_weights(model)
    for module in model.modules():  # buffers have no values on the meta device
        if "position_ids" in dict(module.named_buffers(recurse=False)):
            module.position_ids = torch.arange(config.max_position_embeddings).unsqueeze(0)
    return model


def full_size_tokenizer() -> CLIPTokenizer:
    """A tokenizer with as many entries as CLIP's, and its special tokens in their places; its words are fillers."""
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
        is_table = "embedding.weight" in name and "time" not in name
        std = 0.02 if is_table else parameter[0].numel() ** -0.5
        torch.randn(parameter.shape, generator=generator, out=parameter.data)
        parameter.mul_(std)
    return model.eval()
