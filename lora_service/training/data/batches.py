"""The batches of a stage, made a block at a time as the steps come to them, so that the loop never waits for the host.

Batch ``i`` depends on the seed and ``i`` alone: a stage that goes on at any step sees the batches that it would have
seen.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice

import torch

from lora_service.dataset.captions.templates import TagOptions, fill_template, sample_caption
from lora_service.dataset.captions.token_window import TokenWindow
from lora_service.dataset.training_images import TrainingImage
from lora_service.models.text_encoders import TextEncoders, TokenIds
from lora_service.training.data.latent_cache import CachedLatents

CAPTIONS_PER_BLOCK = 128
"""Captions that are drawn and tokenized at once. With shuffled tags there may be as many captions as steps: drawing
80,000 of them beforehand took half a minute, and tokenizing them another."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch: ``b`` pictures of one size.

    Attributes:
        bucket: the index of their size's latents.
        variants, images: those of each picture and its index within the bucket, ``(b,)``.
        pictures: the index of each in the dataset.
        captions: the row of each caption in its block's ``token_ids``, ``(b,)``.
        chunks: those that its longest caption needs.
        weight: 1 on average over many batches and in proportion to ``b``, which is smaller in a bucket of few
            pictures, so that every picture counts the same.
    """

    bucket: int
    variants: torch.Tensor
    images: torch.Tensor
    captions: torch.Tensor
    pictures: Sequence[int]
    chunks: int
    weight: float


@dataclass(frozen=True)
class BatchBlock:
    """Batches in a row, from number ``first`` on, and their different captions."""

    first: int
    batches: Sequence[Batch]
    texts: Sequence[str]
    token_ids: TokenIds


SubjectTexts = tuple[tuple[str, float], ...]
"""The texts that name a subject in captions, each with its share."""


@dataclass(frozen=True)
class CaptionSampler:
    """Samples a caption.

    Attributes:
        subjects: for each subject, the texts that name it, each with its share; the shares sum to 1.
        chunks: the most chunks of a caption that are read.
    """

    subjects: tuple[SubjectTexts, ...]
    tags: TagOptions
    chunks: int = 1

    def sample(self, image: TrainingImage, rng: random.Random, window: TokenWindow) -> str:
        """Return a caption of ``image`` with its own subject named, or "" where caption dropout takes it."""
        texts, shares = zip(*self.subjects[image.subject], strict=True)
        template = sample_caption(image.captions, self.tags, rng)
        if self.tags.shuffle_tags:  # which may have moved the subject beyond what is read
            template = window.keep_subject(template)
        return fill_template(template, rng.choices(texts, shares)[0])

    def window(self, text_encoders: TextEncoders) -> TokenWindow:
        """Return the tokens that ``text_encoders``, which have the subject's tokens, read of a caption.

        Raises:
            InputError: a text that names the subject is longer than a chunk.
        """
        chunks = min(self.chunks, text_encoders.max_chunks)
        window = TokenWindow(text_encoders.count, text_encoders.chunk_tokens, chunks=chunks)
        for text, _ in (pair for subject in self.subjects for pair in subject):
            window = window.for_subject("trigger", text)
        return window


class BatchPlan:
    """The batches of a stage. Every picture comes as often as its ``repeats`` say before any comes again.

    The pictures' order is drawn for one pass over them after the other; captions and variants of a batch have a random
    generator of their own, so that no earlier one need be drawn to reach it.
    """

    def __init__(
        self,
        cache: Sequence[CachedLatents],
        images: Sequence[TrainingImage],
        captions: CaptionSampler,
        text_encoders: TextEncoders,
        *,
        batch_size: int,
        seed: str,
    ) -> None:
        self._cache, self._images, self._captions, self._text = cache, images, captions, text_encoders
        self._batch_size, self._seed = batch_size, seed
        self._window = captions.window(text_encoders)
        self._device = cache[0].mean.device
        self._length = max(1, CAPTIONS_PER_BLOCK // batch_size)
        self._mean_size = _mean_batch_size(cache, images, batch_size)
        self._pictures: Iterator[tuple[int, list[int]]] = iter(())
        self._block = BatchBlock(0, (), (), TokenIds({}, torch.empty(0)))

    def __getitem__(self, i: int) -> Batch:
        """Return batch ``i``; in order, a block is made once."""
        return self.block_of(i).batches[i % self._length]

    def block_of(self, i: int) -> BatchBlock:
        """Return the block that holds batch ``i``."""
        first = i - i % self._length
        if self._block.first != first or not self._block.batches:
            self._block = self._make_block(first)
        return self._block

    def token_ids(self, i: int, share: slice = slice(None), read: TokenIds | None = None) -> TokenIds:
        """Return the captions of batch ``i``, or of a share of its pictures, tokenized.

        Args:
            read: those of its block, with what was made of them; None: as they are.
        """
        batch, ids = self[i], self.block_of(i).token_ids if read is None else read
        positions, captions = batch.chunks * self._text.positions, batch.captions[share]
        return ids[captions].first(positions)

    def _make_block(self, first: int) -> BatchBlock:
        if not first or first != self._block.first + len(self._block.batches):
            self._pictures = _picture_batches(self._cache, self._images, self._batch_size, random.Random(self._seed))
            next(islice(self._pictures, first, first), None)  # pass over those before it
        rows = list(islice(self._pictures, self._length))
        texts: dict[str, int] = {}
        captions, variants = [], []
        for number, (bucket, members) in enumerate(rows, start=first):
            rng = random.Random(f"{self._seed} {number}")
            cached = self._cache[bucket]
            sampled = [self._captions.sample(self._images[cached.images[m]], rng, self._window) for m in members]
            captions.append([texts.setdefault(text, len(texts)) for text in sampled])
            variants.append([rng.randrange(len(cached.mean)) for _ in members])
        chunks = [min(self._captions.chunks, self._text.chunks_for(self._window.length(text))) for text in texts]
        token_ids = self._text.tokenize(list(texts), max(chunks)).to(self._device)
        tensors = zip(
            _tensors(variants, self._device),
            _tensors([members for _, members in rows], self._device),
            _tensors(captions, self._device),
            strict=True,
        )
        batches = [
            Batch(
                bucket,
                *of_batch,
                pictures=[self._cache[bucket].images[m] for m in members],
                chunks=max(chunks[row] for row in in_block),
                weight=len(members) / self._mean_size,
            )
            for (bucket, members), in_block, of_batch in zip(rows, captions, tensors, strict=True)
        ]
        return BatchBlock(first, batches, list(texts), token_ids)


def _tensors(rows: Sequence[Sequence[int]], device: torch.device) -> Sequence[torch.Tensor]:
    """Return each row ``(b,)`` on the device, where all of them are moved at once."""
    flat = torch.tensor([value for row in rows for value in row], device=device)
    return flat.split([len(row) for row in rows])


def _mean_batch_size(cache: Sequence[CachedLatents], images: Sequence[TrainingImage], batch_size: int) -> float:
    """Return the mean number of pictures in a batch over many passes."""
    counts = [sum(images[image].repeats for image in latents.images) for latents in cache]
    return float(sum(counts) / sum(Fraction(count, min(batch_size, count)) for count in counts))


def _picture_batches(
    cache: Sequence[CachedLatents], images: Sequence[TrainingImage], batch_size: int, rng: random.Random
) -> Iterator[tuple[int, list[int]]]:
    """Yield the bucket and the pictures in it of batch after batch, without end."""
    pending: list[list[int]] = [[] for _ in cache]
    while True:
        epoch = _epoch(cache, images, batch_size, rng, pending)
        while epoch:
            yield epoch.pop()


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
