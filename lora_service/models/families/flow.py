"""What transformers share that are trained by flow matching: noise, sampling, and how their pipelines hold latents."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lora_service.models.defaults import ModelDefaults
from lora_service.models.families.family import Config, Family

if TYPE_CHECKING:
    from torch import Tensor

    from lora_service.models.components import Components

FINE_STEPS = 200
"""Steps that stand for a training's noise levels, which are as fine as can be."""
SCHEDULER = "FlowMatchEulerDiscreteScheduler"
SHORT_SEQUENCE, LONG_SEQUENCE = 256, 4096
"""Positions of pictures of 256 and of 1024 pixels a side."""


FLOW_DEFAULTS = ModelDefaults(
    title="",
    architecture="",
    version="",
    resolution=1024,
    learning_rate_ti=0.0,
    learning_rate_text=0.0,
    learning_rate_unet=1e-4,
    token_norm=None,
    token_std=None,
)
"""What the bases of these families share: no text encoder learns, and the rate is that of diffusers' examples."""


class FlowFamily(Family):
    """A family of transformers on latents ``(1 − σ) x + σ ε``, which predict ``ε − x``.

    The text encoders are frozen: there are no new tokens, and a LoRA changes the transformer alone.

    Attributes:
        patch: side of the patch of latents that is one position of the transformer.
    """

    backbone = "transformer"
    objective = "flow"
    half_precision = "bfloat16"
    schedulers = ("K_EULER",)
    patch = 2

    def matches(self, backbone: Config) -> bool:
        return True

    def check(self, name: str, components: Components) -> None:
        from lora_service.models.components import unusable

        width = self.text_encoders(components).width
        reads = self.text_width(components.backbone)
        if width != reads:
            reason = f"has a text encoder whose states are {width} wide and a transformer that reads {reads}"
            raise unusable(name, reason, code="incomplete_model")

    def text_width(self, backbone: Any) -> int:
        """Return the width of the prompt embeds that the transformer reads."""
        return int(backbone.config.joint_attention_dim)

    def size_step(self, vae: Any, backbone: Any) -> int:
        """Return the pixels of a patch."""
        return self.latent_factor(vae) * self.patch

    def positions(self, height: int, width: int) -> int:
        return (height // self.patch) * (width // self.patch)

    def shift(self, scheduler: Config, positions: int) -> float:
        """Return the scheduler's own shift, or, where it depends on the positions, that of many fine steps."""
        if not scheduler.get("use_dynamic_shifting"):
            return float(scheduler.get("shift", 1.0))
        mu = self.log_shift(scheduler, positions, FINE_STEPS)
        return mu if scheduler.get("time_shift_type") == "linear" else math.exp(mu)

    def log_shift(self, scheduler: Config, positions: int, steps: int) -> float:
        """Return diffusers' ``mu``, linear in the positions (``calculate_shift`` of its pipelines)."""
        short, long = scheduler.get("base_shift", 0.5), scheduler.get("max_shift", 1.15)
        first, last = (
            scheduler.get("base_image_seq_len", SHORT_SEQUENCE),
            scheduler.get("max_image_seq_len", LONG_SEQUENCE),
        )
        return float(short + (long - short) * (positions - first) / (last - first))

    def drawing_bytes(self, backbone: Any, height: int, width: int) -> float:
        """Return the hidden states of picture and text that live at once, with the feed-forward's."""
        config = backbone.config
        hidden = config.get("dim") or config.num_attention_heads * config.attention_head_dim
        return float(16 * hidden * (self.positions(height, width) + 512) * backbone.dtype.itemsize)


class PackedFlowFamily(FlowFamily):
    """A family whose pipelines hold latents as a sequence of patches of 2 × 2, ``(b, n, 4c)``."""

    takes_packed_latents = True

    def pack(self, latents: Tensor) -> Tensor:
        from torch.nn.functional import pixel_unshuffle

        return pixel_unshuffle(latents, self.patch).flatten(2).transpose(1, 2)

    def unpack(self, packed: Tensor, height: int, width: int) -> Tensor:
        from torch.nn.functional import pixel_shuffle

        grid = (height // self.patch, width // self.patch)
        return pixel_shuffle(packed.transpose(1, 2).unflatten(2, grid), self.patch)


def coordinates(time: int, height: int, width: int, length: int, like: Tensor) -> Tensor:
    """Return positions ``(time · height · width · length, 4)`` on the device of ``like``."""
    import torch

    return torch.cartesian_prod(*(torch.arange(n, device=like.device) for n in (time, height, width, length)))
