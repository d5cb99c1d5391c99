"""Losses of stage 2 that keep what the base knows of the subject's class, beside the loss of the subject.

``prior`` (Ruiz et al., DreamBooth, https://arxiv.org/abs/2208.12242, section 3.3): pictures of the class under a prompt
of the class, with the same loss as the subject's. ``output`` needs no pictures: on the subject's own noisy latents and
under its caption with the class word in place of the subject, the prediction stays what it is without the LoRA.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from lora_service.dataset.captions.templates import TagOptions, fill_template
from lora_service.dataset.captions.token_window import TokenWindow
from lora_service.dataset.training_images import TrainingImage
from lora_service.models.text_encoders import PromptEmbeds, TextEncoders, TokenIds
from lora_service.training.data.batches import BatchPlan, CaptionSampler
from lora_service.training.data.class_dataset import class_caption
from lora_service.training.data.latent_cache import CachedLatents
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.losses import loss
from lora_service.training.losses.denoising_loss import DenoisingLoss, NoisyLatents
from lora_service.training.optimization.loop import BatchLoss
from lora_service.training.optimization.processes import Processes

EncodeCaptions = Callable[[int, slice], PromptEmbeds]
"""Number of a micro-batch, and the share of its pictures -> the prompt embeds of their captions."""


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
    """The micro-batches of a plan, by their number; of several processes, this one's share of them."""

    latents: Sequence[CachedLatents]
    plan: BatchPlan
    encode: EncodeCaptions
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
        return NoisyBatch(noisy, self.encode(i, share), sizes, mask, weight * batch.weight)

    def share(self, i: int) -> tuple[slice, float]:
        """Return the pictures of micro-batch ``i`` that are this process's, as of :meth:`Processes.share`."""
        return self.processes.share(len(self.plan[i].images))


class ClassCaptionSampler(CaptionSampler):
    """Samples the captions of class pictures, in which no subject is named.

    Args:
        class_word: stands for a subject that a caption names all the same.
        chunks: as of :class:`CaptionSampler`.
    """

    def __init__(self, class_word: str, chunks: int = 1) -> None:
        super().__init__((((class_word, 1.0),),), TagOptions(), chunks)

    def sample(self, image: TrainingImage, rng: random.Random, window: TokenWindow) -> str:
        return class_caption(rng.choice(image.captions), self.subjects[0][0][0])


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
        batch, ids = subject.sample(i), class_captions(i, subject.share(i)[0])
        with without_lora_layers(models), torch.no_grad():
            target = denoising.predict(batch.noisy, encode(ids), batch.sizes)
        kept = replace(batch, noisy=replace(batch.noisy, target=target), text=encode(ids), mask=None)
        return _weighted(denoising, batch, kept, weight)

    return compute_loss


class ClassCaptions:
    """The captions of a plan's pictures with the class word in place of the subject.

    Tags are not shuffled and no caption is dropped: what is drawn without a caption is the subject's to change.
    """

    def __init__(
        self, subject: BatchSource, images: Sequence[TrainingImage], config: TrainConfig, text: TextEncoders
    ) -> None:
        self.text, self._subject, self._seed = text, subject, config.seed or 0
        texts: dict[str, int] = {}
        self._choices = [
            [texts.setdefault(fill_template(caption, config.class_word), len(texts)) for caption in image.captions]
            for image in images
        ]
        chunks = max(min(config.chunks, text.chunks_for(text.count(each))) for each in texts)
        self._ids = text.tokenize(list(texts), chunks).to(subject.generator.device)

    def __call__(self, i: int, share: slice) -> TokenIds:
        """Return the captions of a share of micro-batch ``i``, tokenized; the same at every call."""
        rng = random.Random(f"class captions {self._seed} {i}")
        rows = [rng.choice(self._choices[picture]) for picture in self._subject.plan[i].pictures]
        return self._ids[torch.tensor(rows[share])]


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
    """Return the predictions of ``batches``, in one forward pass where pictures and captions are of one size."""
    if len({(batch.noisy.noisy.shape[1:], batch.text.states.shape[1:]) for batch in batches}) > 1:
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
