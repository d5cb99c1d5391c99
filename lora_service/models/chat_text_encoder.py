"""A frozen language model as the text encoder, which reads a text as a message of a chat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from lora_service.errors import InputError
from lora_service.models.text_encoders import PromptEmbeds, TextEncoders, TokenIds

POSITIONS = 512
"""Tokens of a text with its template, as diffusers' pipelines pad and truncate it."""
NAME = "text_encoder"


@dataclass(frozen=True, eq=False)
class ChatTextEncoder(TextEncoders):
    """A chat model such as Qwen3; nothing in it learns, and it knows no new tokens.

    Attributes:
        layers: the layers whose hidden states are concatenated, as transformers numbers them; 0 is the embedding.
        thinking: diffusers' ``enable_thinking`` of the template.
        keeps_padding: True if the padding's states are part of the embeds, as the backbone was trained.
    """

    layers: tuple[int, ...] = (-2,)
    thinking: bool = False
    keeps_padding: bool = False

    max_chunks: ClassVar[int] = 1

    @property
    def _encoder(self) -> Any:
        return self.encoders[NAME]

    @property
    def _tokenizer(self) -> Any:
        return self.tokenizers[NAME]

    @property
    def width(self) -> int:
        return int(self._encoder.config.get_text_config().hidden_size) * len(self.layers)

    @property
    def positions(self) -> int:
        return POSITIONS

    @property
    def chunk_tokens(self) -> int:
        return POSITIONS - len(self._tokenizer(self._message("")).input_ids)

    def _message(self, text: str) -> str:
        message: str = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=self.thinking,
        )
        return message

    def tokenize(self, texts: Sequence[str], chunks: int = 1) -> TokenIds:
        tokens = self._tokenizer(
            [self._message(text) for text in texts],
            padding="max_length",
            truncation=True,
            max_length=POSITIONS,
            return_tensors="pt",
        )
        masks = {NAME: tokens.attention_mask.bool()}
        return TokenIds({NAME: tokens.input_ids}, torch.tensor([not text for text in texts]), masks)

    @torch.no_grad()
    def encode(self, ids: TokenIds) -> PromptEmbeds:
        """Encode ``ids``; the embeds have a mask of the text's own tokens, unless padding is kept."""
        mask = ids.masks[NAME]
        with self.on_device():
            output = self._encoder(
                input_ids=ids.by_encoder[NAME], attention_mask=mask, output_hidden_states=True, use_cache=False
            )
            states = torch.cat([output.hidden_states[layer] for layer in self.layers], dim=-1)
        return PromptEmbeds(states, mask=None if self.keeps_padding else mask)

    def with_clip_skip(self, clip_skip: int | None) -> Self:
        if clip_skip is not None:
            expected = "left out: this base reads fixed layers of a language model"
            raise InputError("clip_skip", clip_skip, expected, code="no_clip")
        return self

    def arguments(self, embeds: PromptEmbeds, prefix: str = "") -> dict[str, Any]:
        """Return ``prompt_embeds``: a list of each prompt's own states where the embeds have a mask."""
        return {f"{prefix}prompt_embeds": embeds.states if embeds.mask is None else ragged(embeds)}


def ragged(embeds: PromptEmbeds) -> list[Tensor]:
    """Return the states of each prompt's own tokens, ``(n, width)`` with an ``n`` of its own."""
    assert embeds.mask is not None
    return [states[mask] for states, mask in zip(embeds.states, embeds.mask, strict=True)]
