"""Tiny random models of the Stable Diffusion 1.x, 2.x and XL classes, with the real modules' names."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

FAMILIES = ("sd1", "sd2", "sdxl")
_WORDS = ("a", "photo", "of", "dog", "cat", "on", "the", "beach")


@dataclass(frozen=True)
class SmallModels:
    """The models of a pipeline that a LoRA changes, with fixed inputs to run them on."""

    family: str
    components: dict[str, nn.Module]
    tokenizers: dict[str, CLIPTokenizer]

    @property
    def unet(self) -> nn.Module:
        return self.components["unet"]

    @torch.no_grad()
    def unet_output(self, seed: int = 0) -> Tensor:
        """Run the UNet on random inputs of a seed; the output is ``(1, 4, 8, 8)``."""
        generator = torch.Generator().manual_seed(seed)
        parameter = next(self.unet.parameters())
        width = self.unet.config.cross_attention_dim
        sample, text = (
            torch.randn(shape, generator=generator).to(parameter) for shape in ((1, 4, 8, 8), (1, 7, width))
        )
        added = None
        if self.family == "sdxl":
            pooled = torch.randn((1, 16), generator=generator).to(parameter)
            added = {"text_embeds": pooled, "time_ids": torch.zeros(1, 6).to(parameter)}
        return self.unet(sample, 500, text, added_cond_kwargs=added).sample

    @torch.no_grad()
    def text_output(self, prompt: str = "a photo of a dog", component: str = "text_encoder") -> Tensor:
        """Return a text encoder's last hidden state ``(1, 77, width)``."""
        tokenizer = self.tokenizers[component]
        ids = tokenizer(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        return self.components[component](ids).last_hidden_state


def small_models(family: str = "sd1", dtype: torch.dtype = torch.float32) -> SmallModels:
    """Make random models of a family; the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        components: dict[str, nn.Module] = {
            "unet": _unet(family),
            "text_encoder": small_text_encoder(CLIPTextModel, 32),
        }
        if family == "sdxl":
            components["text_encoder_2"] = small_text_encoder(CLIPTextModelWithProjection, 48)
    tokenizers = {name: small_tokenizer() for name in components if name != "unet"}
    return SmallModels(family, {name: _cast(model.eval(), dtype) for name, model in components.items()}, tokenizers)


def _cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    return model if dtype == torch.float32 else model.to(dtype)  # diffusers warns on every cast


def _unet(family: str) -> UNet2DConditionModel:
    common = {
        "sample_size": 8,
        "block_out_channels": (32, 64),
        "layers_per_block": 2,
        "norm_num_groups": 16,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 4,
        "cross_attention_dim": 32,
    }
    if family == "sd2":
        common |= {"use_linear_projection": True, "attention_head_dim": (2, 4)}
    if family == "sdxl":
        common |= {
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2),
            "use_linear_projection": True,
            "attention_head_dim": (2, 4),
            "cross_attention_dim": 80,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 64,
        }
    return UNet2DConditionModel(**common)


def small_text_encoder(kind: type[nn.Module], width: int) -> nn.Module:
    """Make a random text encoder of one of CLIP's classes."""
    return kind(
        CLIPTextConfig(
            vocab_size=len(_vocabulary()),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=4,
            projection_dim=16,
            bos_token_id=len(_vocabulary()) - 2,
            eos_token_id=2,  # as the published configurations of 1.x and XL have it
        )
    )


def small_tokenizer() -> CLIPTokenizer:
    """Make a CLIP tokenizer whose vocabulary is letters and a few words."""
    return CLIPTokenizer(vocab=_vocabulary(), merges=_merges(), model_max_length=77)


def _vocabulary() -> dict[str, int]:
    letters = [chr(code) for code in range(33, 127)]
    merged = ["".join(pair) for pair in _merges()]
    entries = [*letters, *(letter + "</w>" for letter in letters), *merged, "<|startoftext|>", "<|endoftext|>"]
    return {entry: index for index, entry in enumerate(dict.fromkeys(entries))}


def _merges() -> list[tuple[str, str]]:
    """Return the byte pairs that merge each word from its letters, left to right."""
    merges: dict[tuple[str, str], None] = {}
    for word in _WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            merges[pieces[0], pieces[1]] = None
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
    return list(merges)
