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
    ``token_ids`` holds each different caption once, in the order of their first batches; batch ``i`` and those before
    it need the first ``caption_counts[i]`` of them.
    """

    buckets: list[int]
    variants: torch.Tensor
    images: torch.Tensor
    captions: torch.Tensor
    caption_counts: list[int]
    token_ids: LazyTokenIds

    def batch_token_ids(self, i: int) -> TokenIds:
        """Return the captions of batch ``i``, tokenized."""
        return self.token_ids.first(self.caption_counts[i])[self.captions[i]]


class LazyTokenIds:
    """Texts that are tokenized in blocks, as batches come to need them.

    With shuffled tags there may be as many captions as steps: tokenizing 80,000 of them took a minute, and the
    tokenizer's lists 1.9 GiB.
    """

    BLOCK = 1024

    def __init__(self, texts: Sequence[str], text_encoders: TextEncoders, device: torch.device) -> None:
        self._texts, self._text_encoders, self._device = texts, text_encoders, device
        self._tokenized = 0
        self._by_encoder: dict[str, torch.Tensor] = {}
        self._ids = TokenIds(self._by_encoder, torch.tensor([not text for text in texts]).to(device))

    def __len__(self) -> int:
        return len(self._texts)

    def first(self, count: int) -> TokenIds:
        """Return all texts, of which the first ``count`` or more are tokenized; the rest of the ids are arbitrary."""
        while self._tokenized < count:
            start, end = self._tokenized, min(self._tokenized + self.BLOCK, len(self))
            for name, ids in self._text_encoders.tokenize(self._texts[start:end]).by_encoder.items():
                if not start:
                    self._by_encoder[name] = ids.new_empty((len(self), ids.shape[1]), device=self._device)
                self._by_encoder[name][start:end] = ids.to(self._device)
            self._tokenized = end
        return self._ids

    def all(self) -> TokenIds:
        """Return all texts, tokenized."""
        return self.first(len(self))


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
    caption_rows, caption_counts = [], []
    for b, members in zip(buckets, rows, strict=True):
        sampled = [captions.sample(images[cache[b].images[m]], rng) for m in members]
        caption_rows.append([texts.setdefault(text, len(texts)) for text in sampled])
        caption_counts.append(len(texts))
    variants = [[rng.randrange(len(cache[b].mean)) for _ in members] for b, members in zip(buckets, rows, strict=True)]
    device = cache[0].mean.device
    return BatchPlan(
        buckets=buckets,
        variants=torch.tensor(variants, device=device),
        images=torch.tensor(rows, device=device),
        captions=torch.tensor(caption_rows, device=device),
        caption_counts=caption_counts,
        token_ids=LazyTokenIds(list(texts), text_encoders, device),
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
