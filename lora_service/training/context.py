"""The inputs of the stages, and of what watches them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch

from lora_service.dataset.captions.templates import TagOptions
from lora_service.dataset.training_images import TrainingImage
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.text_encoders import TextEncoders
from lora_service.training.data.batches import BatchPlan, CaptionSampler, SubjectTexts
from lora_service.training.data.latent_cache import CachedLatents
from lora_service.training.inputs.resolved_config import ResolvedConfig
from lora_service.training.memory.offloading import Offloading
from lora_service.training.optimization.gradients import Gradients
from lora_service.training.optimization.processes import Processes


@dataclass(frozen=True)
class ClassSet:
    """The class pictures of prior preservation."""

    images: tuple[TrainingImage, ...]
    latents: Sequence[CachedLatents]


@dataclass(frozen=True)
class TrainingContext:
    """The inputs of both stages; the tokenizers of ``text`` have the new tokens, where there are any.

    Attributes:
        held_out_images, held_out_latents: of the held-out loss, without mirroring and changed colours.
        offloading: the models that may wait on the host; None: they are always on their device.
        gradients: as of :func:`run_loop`.
    """

    base: DiffusionBase
    images: tuple[TrainingImage, ...]
    latents: list[CachedLatents]
    resolved: ResolvedConfig
    text: TextEncoders
    autocast: torch.dtype | None
    processes: Processes = field(default_factory=Processes)
    held_out_images: tuple[TrainingImage, ...] = ()
    held_out_latents: Sequence[CachedLatents] = ()
    class_set: ClassSet | None = None
    offloading: Offloading | None = None
    gradients: Gradients | None = None

    def plan(self, stage: str, subjects: tuple[SubjectTexts, ...], dropout: float) -> BatchPlan:
        """Plan the batches of a stage; ``dropout`` is the share of captions that are left empty."""
        config = self.resolved.config
        tags = TagOptions(config.shuffle_tags, config.keep_tokens, dropout)
        return BatchPlan(
            self.latents,
            self.images,
            CaptionSampler(subjects, tags, config.chunks),
            self.text,
            batch_size=config.train_batch_size * self.processes.count,
            seed=f"{stage} {config.seed}",
        )

    def text_waits(self, *, is_needed: bool, companions_are_needed: bool = False) -> AbstractContextManager[None]:
        """Return the context in which text encoders wait that no step needs, as of :class:`Offloading`."""
        if self.offloading is None:
            return nullcontext()
        return self.offloading.text_waits(is_needed=is_needed, companions_are_needed=companions_are_needed)

    def generator(self, offset: int) -> torch.Generator:
        """Return the generator of a stage's noise and timesteps, on the device."""
        return torch.Generator(self.base.device).manual_seed((self.resolved.config.seed or 0) + offset)
