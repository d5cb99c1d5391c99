"""Prompt embeds that are kept from request to request, bounded by their bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

from lora_service.models.text_encoders import PromptEmbeds

MAX_BYTES = 64 * 2**20
"""Memory of all that is kept: hundreds of prompts of SD 1.5 (237 KB each in fp32), or a hundred of XL."""


class PromptCache:
    """Keeps the embeds of the prompts that were used last.

    A key has to name everything that an embed depends on: the state of the patched text encoders, the prompt, and how
    it is encoded. Only for bases whose text encoders nothing but the patcher changes, so not during trainings.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._embeds: OrderedDict[Hashable, PromptEmbeds] = OrderedDict()
        self._bytes = 0

    def get(self, key: Hashable, encode: Callable[[], PromptEmbeds]) -> PromptEmbeds:
        """Return the embeds of ``key``, which ``encode`` makes where they are not kept."""
        embeds = self._embeds.get(key)
        if embeds is not None:
            self._embeds.move_to_end(key)
            return embeds
        embeds = encode()
        self._embeds[key] = embeds
        self._bytes += size_of(embeds)
        while self._bytes > self._max_bytes:
            _, oldest = self._embeds.popitem(last=False)
            self._bytes -= size_of(oldest)
        return embeds

    def __len__(self) -> int:
        return len(self._embeds)


def size_of(embeds: PromptEmbeds) -> int:
    """Return the bytes of embeds."""
    return sum(part.nbytes for part in (embeds.states, embeds.pooled) if part is not None)
