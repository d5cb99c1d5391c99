"""Losses of stage 2 that keep what the base knows of the subject's class, beside the loss of the subject.

``prior`` (Ruiz et al., DreamBooth, https://arxiv.org/abs/2208.12242, section 3.3): pictures of the class under a prompt
of the class, with the same loss as the subject's. ``output`` needs no pictures: on the subject's own noisy latents and
under its caption with the class word in place of the subject, the prediction stays what it is without the LoRA.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from lora_service.dataset.captions.templates import TagOptions, fill_template
from lora_service.dataset.captions.token_window import TokenWindow
from lora_service.dataset.training_images import TrainingImage
from lora_service.models.text_encoders import PromptEmbeds, TextEncoders, TokenIds
from lora_service.training import loss
from lora_service.training.batches import BatchPlan, CaptionSampler
from lora_service.training.class_dataset import class_caption
from lora_service.training.denoising_loss import DenoisingLoss, NoisyLatents
from lora_service.training.latent_cache import CachedLatents
from lora_service.training.loop import BatchLoss

EncodeCaptions = Callable[[int], PromptEmbeds]
"""Number of a micro-batch -> the prompt embeds of its captions."""


@dataclass(frozen=True)
class ClassSet:
    """The class pictures of prior preservation."""

    images: tuple[TrainingImage, ...]
    latents: Sequence[CachedLatents]


@dataclass(frozen=True)
class NoisyBatch:
    """A micro-batch, with all that its loss takes.

    Attributes:
        sizes, mask: as of :class:`DenoisingLoss`.
        weight: how much it counts among the batches.
    """

    noisy: NoisyLatents
    text: PromptEmbeds
    sizes: torch.Tensor | None
    mask: torch.Tensor | None
    weight: float


@dataclass(frozen=True)
class BatchSource:
    """The micro-batches of a plan, by their number."""

    latents: Sequence[CachedLatents]
    plan: BatchPlan
    encode: EncodeCaptions
    denoising: DenoisingLoss
    generator: torch.Generator

    def sample(self, i: int) -> NoisyBatch:
        """Return micro-batch ``i``, with noise drawn from the generator."""
        plan = self.plan
        bucket, variants, images = self.latents[plan.buckets[i]], plan.variants[i], plan.images[i]
        noisy = self.denoising.sample(bucket.sample(variants, images, self.generator), self.generator)
        sizes, mask = bucket.time_ids(variants, images), bucket.masks(variants, images)
        return NoisyBatch(noisy, self.encode(i), sizes, mask, plan.weights[i])


class ClassCaptionSampler(CaptionSampler):
    """Samples the captions of class pictures, in which no subject is named.

    Args:
        class_word: stands for a subject that a caption names all the same.
    """

    def __init__(self, class_word: str) -> None:
        super().__init__(((class_word, 1.0),), TagOptions())

    def sample(self, image: TrainingImage, rng: random.Random, window: TokenWindow) -> str:
        return class_caption(rng.choice(image.captions), self.subject_texts[0][0])


def prior_loss(subject: BatchSource, of_class: BatchSource, weight: float) -> Callable[[int], BatchLoss]:
    """Return the loss of micro-batch ``i`` of the subject and of the class; ``weight`` is the class's."""

    def compute_loss(i: int) -> BatchLoss:
        return _weighted(subject.denoising, subject.sample(i), of_class.sample(i), weight)

    return compute_loss


def output_loss(
    subject: BatchSource, class_captions: ClassCaptions, models: Mapping[str, nn.Module], weight: float
) -> Callable[[int], BatchLoss]:
    """Return the loss of micro-batch ``i`` of the subject and of the class under the same noise.

    Args:
        models: the base's components, which have the LoRA layers.
    """
    denoising, encode = subject.denoising, class_captions.text.encode

    def compute_loss(i: int) -> BatchLoss:
        batch, ids = subject.sample(i), class_captions(i)
        with without_lora_layers(models), torch.no_grad():
            target = denoising.predict(batch.noisy, encode(ids), batch.sizes)
        kept = replace(batch, noisy=replace(batch.noisy, target=target), text=encode(ids), mask=None)
        return _weighted(denoising, batch, kept, weight)

    return compute_loss


class ClassCaptions:
    """The captions of a plan's pictures with the class word in place of the subject.

    Tags are not shuffled and no caption is dropped: what is drawn without a caption is the subject's to change.

    Args:
        device: where the tokens are wanted.
    """

    def __init__(
        self, subject: BatchSource, images: Sequence[TrainingImage], class_word: str, text: TextEncoders, seed: int
    ) -> None:
        self.text, self._seed = text, seed
        texts: dict[str, int] = {}
        self._choices = [
            [texts.setdefault(fill_template(c, class_word), len(texts)) for c in image.captions] for image in images
        ]
        device = subject.generator.device
        self._ids = text.tokenize(list(texts)).to(device)
        # Read once, before the device has anything to do: the host waits for it at each of these.
        pairs = zip(subject.plan.buckets, subject.plan.images, strict=True)
        self._images = [[subject.latents[bucket].images[m] for m in members.tolist()] for bucket, members in pairs]

    def __call__(self, i: int) -> TokenIds:
        """Return the captions of micro-batch ``i``, tokenized; the same at every call."""
        rng = random.Random(f"class captions {self._seed} {i}")
        return self._ids[torch.tensor([rng.choice(self._choices[image]) for image in self._images[i]])]


@contextmanager
def without_lora_layers(models: Mapping[str, nn.Module]) -> Iterator[None]:
    """Let ``models`` compute without their LoRA layers within the context."""
    layers = [module for model in models.values() for module in model.modules() if isinstance(module, BaseTunerLayer)]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def _weighted(denoising: DenoisingLoss, subject: NoisyBatch, of_class: NoisyBatch, weight: float) -> BatchLoss:
    predictions = _predict(denoising, (subject, of_class))
    instance, kept = (
        loss.masked_loss(prediction, batch.noisy.target, batch.noisy.weights, batch.mask) * batch.weight
        for prediction, batch in zip(predictions, (subject, of_class), strict=True)
    )
    return BatchLoss(instance + weight * kept, {"instance": instance, "class": kept})


def _predict(denoising: DenoisingLoss, batches: Sequence[NoisyBatch]) -> Sequence[torch.Tensor]:
    """Return the predictions of ``batches``, in one forward pass where their pictures are of one size."""
    if len({batch.noisy.noisy.shape[1:] for batch in batches}) > 1:  # buckets of other shapes
        return [denoising.predict(batch.noisy, batch.text, batch.sizes) for batch in batches]
    sizes = [batch.sizes for batch in batches if batch.sizes is not None]
    prediction = denoising.predict(
        NoisyLatents(
            *(
                torch.cat([getattr(batch.noisy, name) for batch in batches])
                for name in ("noisy", "target", "timesteps", "weights")
            )
        ),
        PromptEmbeds.concatenate([batch.text for batch in batches]),
        torch.cat(sizes) if sizes else None,
    )
    return prediction.split([len(batch.noisy.noisy) for batch in batches])
