"""The parts of a full-size Stable Diffusion 1.5, with random weights: for speed and memory, weights do not matter."""

from __future__ import annotations

from typing import TypeVar

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

Model = TypeVar("Model", bound=nn.Module)


def bare_unet() -> UNet2DConditionModel:
    """The UNet of Stable Diffusion 1.5 on the meta device, without values: 860 million weights."""
    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(320, 640, 1280, 1280),
            layers_per_block=2,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            cross_attention_dim=768,
            attention_head_dim=8,
        )


def bare_text_encoder() -> CLIPTextModel:
    """The text encoder of Stable Diffusion 1.5 on the meta device, without values: 123 million weights."""
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
        return CLIPTextModel(config)


def with_positions(model: CLIPTextModel) -> CLIPTextModel:
    """``model`` with its one buffer filled, which has no value on the meta device."""
    model.embeddings.position_ids = torch.arange(77, device=model.device).unsqueeze(0)
    return model


def unet(dtype: torch.dtype, device: torch.device) -> UNet2DConditionModel:
    """A UNet of random weights."""
    return _with_random_weights(bare_unet(), dtype, device)


def text_encoder(dtype: torch.dtype, device: torch.device) -> CLIPTextModel:
    """A text encoder of random weights."""
    return with_positions(_with_random_weights(bare_text_encoder(), dtype, device))


def small_tokenizer() -> CLIPTokenizer:
    """A tokenizer that knows letters only; full-size vocabularies are not needed where no text is read."""
    entries = [*map(chr, range(33, 127)), *(chr(code) + "</w>" for code in range(33, 127))]
    entries += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={entry: number for number, entry in enumerate(entries)}, merges=[])


@torch.no_grad()
def _with_random_weights(model: Model, dtype: torch.dtype, device: torch.device) -> Model:
    model.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(float(name.endswith("weight")))
        else:
            parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
        parameter.data = parameter.data.to(dtype)
    return model.eval().requires_grad_(False)
