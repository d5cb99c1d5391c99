"""The batches of a whole stage, planned beforehand so that the loop never waits for the host."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lora_service.dataset.captions.templates import TagOptions, fill_template, sample_caption
from lora_service.dataset.training_images import TrainingImage
from lora_service.models.text_encoders import TextEncoders, TokenIds
from lora_service.training.latent_cache import CachedLatents


@dataclass(frozen=True)
class BatchPlan:
    """The micro-batches of a stage, in order; batch ``i`` holds pictures of one size, those of ``buckets[i]``.

    ``variants``, ``images`` (indices within the bucket) and ``captions`` (rows of ``token_ids``) are ``(batches, b)``;
    ``token_ids`` holds each different caption once.
    """

    buckets: list[int]
    variants: torch.Tensor
    images: torch.Tensor
    captions: torch.Tensor
    token_ids: TokenIds


@dataclass(frozen=True)
class CaptionSampler:
    """Samples a caption; ``subject_texts`` name the subject, each with its share, and the shares sum to 1."""

    subject_texts: tuple[tuple[str, float], ...]
    tags: TagOptions

    def sample(self, image: TrainingImage, rng: random.Random) -> str:
        """Return a caption of ``image`` with the subject named, or "" where caption dropout takes it."""
        texts, shares = zip(*self.subject_texts, strict=True)
        return fill_template(sample_caption(image.captions, self.tags, rng), rng.choices(texts, shares)[0])


def plan_batches(
    cache: Sequence[CachedLatents],
    images: Sequence[TrainingImage],
    captions: CaptionSampler,
    text_encoders: TextEncoders,
    *,
    batches: int,
    batch_size: int,
    seed: str,
) -> BatchPlan:
    """Plan ``batches`` batches. Every picture comes as often as its ``repeats`` say before any comes again."""
    rng = random.Random(seed)
    queue: list[tuple[int, list[int]]] = []
    buckets, rows = [], []
    for _ in range(batches):
        if not queue:
            queue = _epoch(cache, images, batch_size, rng)
        bucket, members = queue.pop()
        buckets.append(bucket)
        rows.append(members)
    texts: dict[str, int] = {}
    caption_rows = [
        [texts.setdefault(captions.sample(images[cache[b].images[m]], rng), len(texts)) for m in members]
        for b, members in zip(buckets, rows, strict=True)
    ]
    variants = [[rng.randrange(len(cache[b].mean)) for _ in members] for b, members in zip(buckets, rows, strict=True)]
    device = cache[0].mean.device
    return BatchPlan(
        buckets=buckets,
        variants=torch.tensor(variants, device=device),
        images=torch.tensor(rows, device=device),
        captions=torch.tensor(caption_rows, device=device),
        token_ids=text_encoders.tokenize(list(texts)).to(device),
    )


def _epoch(
    cache: Sequence[CachedLatents], images: Sequence[TrainingImage], batch_size: int, rng: random.Random
) -> list[tuple[int, list[int]]]:
    """Return one pass over all pictures in full batches of one bucket each; a short one is filled from its bucket."""
    batches = []
    for bucket, latents in enumerate(cache):
        order = [m for m, image in enumerate(latents.images) for _ in range(images[image].repeats)]
        rng.shuffle(order)
        while len(order) % batch_size:
            order.append(rng.randrange(len(latents.images)))
        batches += [(bucket, order[i : i + batch_size]) for i in range(0, len(order), batch_size)]
    rng.shuffle(batches)
    return batches
