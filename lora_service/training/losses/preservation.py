"""Losses of stage 2 that keep what the base knows of the subject's class, beside the loss of the subject.

``prior`` (Ruiz et al., DreamBooth, https://arxiv.org/abs/2208.12242, section 3.3): pictures of the class under a prompt
of the class, with the same loss as the subject's. ``output`` needs no pictures: on the subject's own noisy latents and
under its caption with the class word in place of the subject, the prediction stays what it is without the LoRA.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from lora_service.dataset.captions.templates import TagOptions, fill_template
from lora_service.dataset.captions.token_window import TokenWindow
from lora_service.dataset.training_images import TrainingImage
from lora_service.models.text_encoders import TextEncoders, TokenIds
from lora_service.training.data.batches import CaptionSampler
from lora_service.training.data.class_dataset import class_caption
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.losses.batch_loss import BatchLoss, BatchSource, NoisyBatch, predict_together
from lora_service.training.losses.denoising_loss import DenoisingLoss


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


@dataclass(frozen=True)
class PriorLoss:
    """The loss of a micro-batch of the subject and one of the class.

    Args:
        text: encodes captions that are not yet.
        weight: the class's.
    """

    denoising: DenoisingLoss
    text: TextEncoders
    weight: float

    def __call__(self, batches: tuple[NoisyBatch, NoisyBatch]) -> BatchLoss:
        """Return the loss of the subject's batch and the class's."""
        return _weighted(self.denoising, self.text, batches, self.weight)


@dataclass(frozen=True)
class OutputLoss:
    """The loss of a micro-batch of the subject, and of the class under the same noise.

    Args:
        text: encodes captions.
        models: the base's components, which have the LoRA layers.
        weight: the class's.
    """

    denoising: DenoisingLoss
    text: TextEncoders
    models: Mapping[str, nn.Module]
    weight: float

    def __call__(self, batches: tuple[NoisyBatch, TokenIds]) -> BatchLoss:
        """Return the loss of the subject's batch and of its captions with the class word, tokenized."""
        batch, ids = batches
        with without_lora_layers(self.models), torch.no_grad():
            target = self.denoising.predict(batch.noisy, self.text.encode(ids), batch.sizes)
        kept = replace(batch, noisy=replace(batch.noisy, target=target), captions=ids, mask=None)
        return _weighted(self.denoising, self.text, (batch, kept), self.weight)


class ClassCaptions:
    """The captions of a plan's pictures with the class word in place of the subject.

    Tags are not shuffled and no caption is dropped: what is drawn without a caption is the subject's to change.
    """

    def __init__(
        self, subject: BatchSource, images: Sequence[TrainingImage], config: TrainConfig, text: TextEncoders
    ) -> None:
        self._subject, self._seed = subject, config.seed or 0
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


def _weighted(
    denoising: DenoisingLoss, text: TextEncoders, batches: tuple[NoisyBatch, NoisyBatch], weight: float
) -> BatchLoss:
    """Return the loss of both batches, in one pass where their pictures and captions are of one size."""
    encoded = [batch.encoded(text) for batch in batches]
    sizes = {(batch.noisy.noisy.shape[1:], batch.embeds(text).states.shape[1:]) for batch in encoded}
    passes = [encoded] if len(sizes) == 1 else [[batch] for batch in encoded]
    predictions = [each for batch in passes for each in predict_together(denoising.base, text, batch)]
    instance, kept = (batch.loss_of(each) for batch, each in zip(encoded, predictions, strict=True))
    return BatchLoss(instance + weight * kept, {"instance": instance, "class": kept})
