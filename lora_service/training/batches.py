"""The batches of a whole stage, planned beforehand so that the loop never waits for the host."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lora_service.dataset.captions.templates import TagOptions, fill_template, sample_caption
from lora_service.dataset.captions.token_window import TokenWindow
from lora_service.dataset.training_images import TrainingImage
from lora_service.models.text_encoders import TextEncoders, TokenIds
from lora_service.training.latent_cache import CachedLatents


@dataclass(frozen=True)
class BatchPlan:
    """The micro-batches of a stage, in order; batch ``i`` holds pictures of one size, those of ``buckets[i]``.

    ``variants``, ``images`` (indices within the bucket) and ``captions`` (rows of ``token_ids``) hold ``(b,)`` for each
    batch. ``weights`` are 1 on average and in proportion to ``b``, which is smaller in a bucket of few pictures, so
    that every picture counts the same. ``token_ids`` holds each different caption once, in the order of their first
    batches; batch ``i`` and those before it need the first ``caption_counts[i]`` of them.
    """

    buckets: list[int]
    variants: Sequence[torch.Tensor]
    images: Sequence[torch.Tensor]
    captions: Sequence[torch.Tensor]
    weights: list[float]
    caption_counts: list[int]
    token_ids: LazyTokenIds

    def batch_token_ids(self, i: int, share: slice = slice(None)) -> TokenIds:
        """Return the captions of batch ``i``, or of a share of its pictures, tokenized."""
        return self.token_ids.first(self.caption_counts[i])[self.captions[i][share]]


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

    def sample(self, image: TrainingImage, rng: random.Random, window: TokenWindow) -> str:
        """Return a caption of ``image`` with the subject named, or "" where caption dropout takes it."""
        texts, shares = zip(*self.subject_texts, strict=True)
        template = sample_caption(image.captions, self.tags, rng)
        if self.tags.shuffle_tags:  # which may have moved the subject beyond what is read
            template = window.keep_subject(template)
        return fill_template(template, rng.choices(texts, shares)[0])

    def window(self, text_encoders: TextEncoders) -> TokenWindow:
        """Return the tokens that ``text_encoders``, which have the subject's tokens, read of a caption.

        Raises:
            InputError: a text that names the subject is longer than that.
        """
        window = TokenWindow(text_encoders.count, text_encoders.positions - 2)
        for text, _ in self.subject_texts:
            window = window.for_subject("trigger", text)
        return window


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
    pending: list[list[int]] = [[] for _ in cache]
    buckets, rows = [], []
    for _ in range(batches):
        if not queue:
            queue = _epoch(cache, images, batch_size, rng, pending)
        bucket, members = queue.pop()
        buckets.append(bucket)
        rows.append(members)
    texts: dict[str, int] = {}
    window = captions.window(text_encoders)
    caption_rows, caption_counts = [], []
    for b, members in zip(buckets, rows, strict=True):
        sampled = [captions.sample(images[cache[b].images[m]], rng, window) for m in members]
        caption_rows.append([texts.setdefault(text, len(texts)) for text in sampled])
        caption_counts.append(len(texts))
    variants = [[rng.randrange(len(cache[b].mean)) for _ in members] for b, members in zip(buckets, rows, strict=True)]
    device = cache[0].mean.device
    mean_size = sum(map(len, rows)) / max(1, len(rows))
    return BatchPlan(
        buckets=buckets,
        variants=_tensors(variants, device),
        images=_tensors(rows, device),
        captions=_tensors(caption_rows, device),
        weights=[len(members) / mean_size for members in rows],
        caption_counts=caption_counts,
        token_ids=LazyTokenIds(list(texts), text_encoders, device),
    )


def _tensors(rows: Sequence[Sequence[int]], device: torch.device) -> Sequence[torch.Tensor]:
    """Return each row ``(b,)`` on the device, where all of them are moved at once."""
    flat = torch.tensor([value for row in rows for value in row], device=device)
    return flat.split([len(row) for row in rows])


def _epoch(
    cache: Sequence[CachedLatents],
    images: Sequence[TrainingImage],
    batch_size: int,
    rng: random.Random,
    pending: list[list[int]],
) -> list[tuple[int, list[int]]]:
    """Return one pass over all pictures in batches of one bucket each.

    A bucket with fewer pictures than a batch has smaller ones. What does not fill a batch waits in ``pending``, by
    bucket, for the next pass.
    """
    batches = []
    for bucket, latents in enumerate(cache):
        order = [m for m, image in enumerate(latents.images) for _ in range(images[image].repeats)]
        rng.shuffle(order)
        size = min(batch_size, len(order))
        waiting = pending[bucket] + order
        full = len(waiting) // size * size
        batches += [(bucket, waiting[i : i + size]) for i in range(0, full, size)]
        pending[bucket] = waiting[full:]
    rng.shuffle(batches)
    return batches
