"""The micro-batches of a stage, by their number, and the loss of one.

Both are apart: what is sampled learns nothing, and the loss is a function of it and of the models alone. So it can be
computed again, recorded and replayed, or computed together with those of other jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch

from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.text_encoders import PromptEmbeds, TextEncoders, TokenIds
from lora_service.training.data.batches import BatchPlan
from lora_service.training.data.latent_cache import CachedLatents
from lora_service.training.losses.denoising_loss import DenoisingLoss, NoisyLatents
from lora_service.training.losses.loss import masked_loss
from lora_service.training.optimization.processes import Processes

Captions: TypeAlias = TokenIds | PromptEmbeds
"""Captions that are still to be encoded, as something learns in the text encoders, or encoded ones."""
ReadCaptions = Callable[[int, slice], Captions]
"""Number of a micro-batch, and the share of its pictures -> their captions."""


@dataclass(frozen=True)
class BatchLoss:
    """The loss of a micro-batch.

    Attributes:
        total: the scalar that gradients are taken of.
        parts: scalars to log beside it, by name, where ``total`` has several.
    """

    total: torch.Tensor
    parts: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def detach(self) -> BatchLoss:
        """Return it without its gradients."""
        return BatchLoss(self.total.detach(), {name: part.detach() for name, part in self.parts.items()})


@dataclass(frozen=True)
class NoisyBatch:
    """A micro-batch, with all that its loss takes.

    Attributes:
        sizes, mask: as of :class:`DenoisingLoss`.
        weight: how much it counts among the batches.
    """

    noisy: NoisyLatents
    captions: Captions
    sizes: torch.Tensor | None
    mask: torch.Tensor | None
    weight: float

    def embeds(self, text: TextEncoders) -> PromptEmbeds:
        """Return the prompt embeds of its captions."""
        return self.captions if isinstance(self.captions, PromptEmbeds) else text.encode(self.captions)

    def encoded(self, text: TextEncoders) -> NoisyBatch:
        """Return it with its captions encoded."""
        return replace(self, captions=self.embeds(text))

    def loss_of(self, prediction: torch.Tensor) -> torch.Tensor:
        """Return the loss of a prediction ``(b, c, h, w)``, a scalar in fp32."""
        loss = masked_loss(prediction, self.noisy.target, self.noisy.weights, self.mask)
        return loss if self.weight == 1 else loss * self.weight

    @staticmethod
    def concatenate(batches: Sequence[NoisyBatch]) -> NoisyBatch:
        """Return ``batches``, whose pictures and captions are of one size, as one without masks."""
        sizes = [batch.sizes for batch in batches if batch.sizes is not None]
        embeds = [batch.captions for batch in batches if isinstance(batch.captions, PromptEmbeds)]
        ids = [batch.captions for batch in batches if isinstance(batch.captions, TokenIds)]
        return NoisyBatch(
            NoisyLatents.concatenate([batch.noisy for batch in batches]),
            TokenIds.concatenate(ids) if ids else PromptEmbeds.concatenate(embeds),
            torch.cat(sizes) if sizes else None,
            mask=None,
            weight=1.0,
        )


def predict_together(base: DiffusionBase, text: TextEncoders, batches: Sequence[NoisyBatch]) -> Sequence[torch.Tensor]:
    """Return the predictions of ``batches``, whose pictures and captions are of one size, of one forward pass."""
    whole = NoisyBatch.concatenate(batches)
    prediction = base.denoise(whole.noisy.noisy, whole.noisy.timesteps, whole.embeds(text), whole.sizes)
    return prediction.split([len(batch.noisy.noisy) for batch in batches])


@dataclass(frozen=True)
class BatchSource:
    """The micro-batches of a plan, by their number; of several processes, this one's share of them."""

    latents: Sequence[CachedLatents]
    plan: BatchPlan
    read: ReadCaptions
    denoising: DenoisingLoss
    generator: torch.Generator
    processes: Processes = field(default_factory=Processes)

    def sample(self, i: int) -> NoisyBatch:
        """Return micro-batch ``i``, with noise drawn from the generator."""
        batch = self.plan[i]
        bucket, variants, images = self.latents[batch.bucket], batch.variants, batch.images
        noisy = self.denoising.sample(bucket.sample(variants, images, self.generator), self.generator)
        share, weight = self.share(i)
        if self.processes.count > 1:
            noisy, variants, images = noisy[share], variants[share], images[share]
        sizes, mask = bucket.time_ids(variants, images), bucket.masks(variants, images)
        return NoisyBatch(noisy, self.read(i, share), sizes, mask, weight * batch.weight)

    def share(self, i: int) -> tuple[slice, float]:
        """Return the pictures of micro-batch ``i`` that are this process's, as of :meth:`Processes.share`."""
        return self.processes.share(len(self.plan[i].images))


@dataclass(frozen=True)
class SubjectLoss:
    """The loss of the subject's pictures alone.

    Args:
        text: encodes captions that are not yet.
    """

    denoising: DenoisingLoss
    text: TextEncoders

    def __call__(self, batch: NoisyBatch) -> BatchLoss:
        """Return the loss of ``batch``."""
        return BatchLoss(batch.loss_of(self.denoising.predict(batch.noisy, batch.embeds(self.text), batch.sizes)))
