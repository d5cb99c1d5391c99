"""The text encoders of Stable Diffusion, one of CLIP's or XL's two, which learn new tokens and LoRA layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from lora_service.errors import InputError
from lora_service.models.text_encoders import PromptEmbeds, TextEncoders, TokenIds

TextEncoder: TypeAlias = CLIPTextModel | CLIPTextModelWithProjection

MAX_CHUNKS = 3
"""Most chunks of a text, 225 tokens of CLIP's, as kohya's trainer has them at most."""


@dataclass(frozen=True, eq=False)
class ClipTextEncoders(TextEncoders):
    """One of CLIP's text encoders, or Stable Diffusion XL's two.

    The prompt embeds of one encoder (Stable Diffusion 1.x and 2.x) are its last hidden states. Those of two (XL) are
    both penultimate hidden states, concatenated, and as pooled embedding the second one's projection of the
    end-of-text token (https://arxiv.org/abs/2307.01952, section 2.1).

    A text that is longer than an encoder reads at once is encoded in chunks, each with a start and an end of its own,
    and their states are concatenated, as A1111 and ComfyUI do; the pooled embedding is the first chunk's.

    Attributes:
        zeros_for_empty_prompt: the base was trained with zeros for an empty prompt, not with the embedding of ""
            (diffusers' ``force_zeros_for_empty_prompt``).
        clip_skip: the layer whose hidden states are taken, counted from the end as A1111 and kohya do: 1 is the last.
            None: the base's own, 1 with one encoder and 2 with two. One encoder's final norm follows any layer, two
            have none.
        pools_all: the pooled embedding is that of all encoders, concatenated.
    """

    encoders: Mapping[str, TextEncoder]
    tokenizers: Mapping[str, CLIPTokenizer]
    zeros_for_empty_prompt: bool = False
    pools_all: bool = False

    max_chunks: ClassVar[int] = MAX_CHUNKS
    reads_weights: ClassVar[bool] = True

    @property
    def learning(self) -> Mapping[str, TextEncoder]:
        return self.encoders

    @property
    def width(self) -> int:
        """Width of the hidden states that the UNet reads, its ``cross_attention_dim``."""
        return sum(encoder.config.hidden_size for encoder in self.encoders.values())

    @property
    def positions(self) -> int:
        """Number of tokens of a chunk, with its start and end."""
        # A tokenizer saved without ``model_max_length`` claims to have no limit.
        return min(encoder.config.max_position_embeddings for encoder in self.encoders.values())

    @property
    def chunk_tokens(self) -> int:
        """Number of a text's own tokens in a chunk, 75 of CLIP's."""
        return self.positions - 2

    def unused_layers(self, name: str) -> tuple[str, ...]:
        """Return the module paths, without ``text_model.``, of layers of the encoder ``name`` that no embeds depend on.

        That is the last layer of XL's first encoder, whose penultimate hidden states are used; the second one's is
        behind the pooled embedding.
        """
        if self.pools_all or len(self.encoders) == 1 or name == list(self.encoders)[-1]:
            return ()
        return (f"encoder.layers.{self.encoders[name].config.num_hidden_layers - 1}",)

    def with_clip_skip(self, clip_skip: int | None) -> ClipTextEncoders:
        """Return the same encoders with another :attr:`clip_skip`.

        Raises:
            InputError: an encoder has fewer layers.
        """
        layers = min((encoder.config.num_hidden_layers for encoder in self.encoders.values()), default=0)
        if clip_skip is not None and clip_skip > layers:
            raise InputError("clip_skip", clip_skip, f"at most {layers}, the layers of the base's text encoder")
        return replace(self, clip_skip=clip_skip)

    def tokenize(self, texts: Sequence[str], chunks: int = 1) -> TokenIds:
        """Tokenize ``texts``, truncated and padded to ``chunks`` chunks of :attr:`positions` ids."""
        ids = {name: self._chunked_ids(tokenizer, texts, chunks) for name, tokenizer in self.tokenizers.items()}
        return TokenIds(ids, torch.tensor([not text for text in texts]))

    def _chunked_ids(self, tokenizer: CLIPTokenizer, texts: Sequence[str], chunks: int) -> Tensor:
        """Return the ids ``(b, chunks · positions)``; a chunk behind a text's end is that of an empty text."""
        options: dict[str, Any] = {"truncation": True}
        if chunks == 1:
            options |= {"padding": "max_length", "max_length": self.positions, "return_tensors": "pt"}
            whole: Tensor = tokenizer(list(texts), **options).input_ids
            return whole
        size = self.chunk_tokens
        options |= {"add_special_tokens": False, "max_length": chunks * size}
        rows = []
        for ids in tokenizer(list(texts), **options).input_ids:
            row: list[int] = []
            for start in range(0, chunks * size, size):
                chunk = [tokenizer.bos_token_id, *ids[start : start + size], tokenizer.eos_token_id]
                row += chunk + [tokenizer.pad_token_id] * (self.positions - len(chunk))
            rows.append(row)
        return torch.tensor(rows)

    def encode(self, ids: TokenIds) -> PromptEmbeds:
        """Encode ``ids``, on the encoders' device; gradients reach whatever is trained in the encoders.

        The states are ``(b, chunks · positions, width)``.
        """
        with self.on_device():
            embeds = self._encode_with_two(ids) if len(self.encoders) > 1 else self._encode_with_one(ids)
        if not self.zeros_for_empty_prompt:
            return embeds
        pooled = None if embeds.pooled is None else embeds.pooled.masked_fill(ids.is_empty[:, None], 0)
        return PromptEmbeds(embeds.states.masked_fill(ids.is_empty[:, None, None], 0), pooled)

    def _encode_with_one(self, ids: TokenIds) -> PromptEmbeds:
        ((name, encoder),) = self.encoders.items()
        chunks = ids.by_encoder[name].reshape(-1, self.positions)
        if self.clip_skip in (None, 1):
            states = encoder(chunks)[0]
        else:
            hidden = encoder(chunks, output_hidden_states=True).hidden_states[-(self.clip_skip or 1)]
            states = final_norm(encoder)(hidden)
        return PromptEmbeds(states.reshape(len(ids), -1, states.shape[-1]))

    def _encode_with_two(self, ids: TokenIds) -> PromptEmbeds:
        outputs = [
            encoder(ids.by_encoder[name].reshape(-1, self.positions), output_hidden_states=True)
            for name, encoder in self.encoders.items()
        ]
        layer = -(self.clip_skip or 2)
        states = torch.cat([out.hidden_states[layer] for out in outputs], dim=-1)
        embeds = [out.text_embeds for out in (outputs if self.pools_all else outputs[-1:])]
        pooled = torch.cat([each.reshape(len(ids), -1, each.shape[-1])[:, 0] for each in embeds], dim=-1)
        return PromptEmbeds(states.reshape(len(ids), -1, states.shape[-1]), pooled)


def final_norm(encoder: TextEncoder) -> nn.Module:
    """Return the norm behind a text encoder's last layer: inside ``text_model``, or, in newer transformers, its own."""
    norm: nn.Module = getattr(encoder, "text_model", encoder).final_layer_norm
    return norm
