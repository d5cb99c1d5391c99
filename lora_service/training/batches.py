"""What each step sees, drawn for a whole stage beforehand, so that the loop never waits for the host."""

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
    """The choices of all micro-batches of a stage; batch ``i`` comes from ``groups[i]``.

    ``versions``, ``pictures`` (within the group) and ``captions`` (rows of ``ids``)
    are ``(batches, b)``; ``ids`` holds each different caption once.
    """

    groups: list[int]
    versions: torch.Tensor
    pictures: torch.Tensor
    captions: torch.Tensor
    ids: TokenIds


@dataclass(frozen=True)
class CaptionSampler:
    """How captions name the subject: ``subject_texts`` with their shares, which sum to 1."""

    subject_texts: tuple[tuple[str, float], ...]
    tags: TagOptions

    def caption(self, picture: TrainingImage, rng: random.Random) -> str:
        """A caption of ``picture`` with the subject named, or "" where dropout takes it."""
        names, shares = zip(*self.subject_texts, strict=True)
        return fill_template(sample_caption(picture.captions, self.tags, rng), rng.choices(names, shares)[0])


def plan_batches(
    cache: Sequence[CachedLatents],
    pictures: Sequence[TrainingImage],
    wording: CaptionSampler,
    text: TextEncoders,
    *,
    batches: int,
    batch_size: int,
    seed: str,
) -> BatchPlan:
    """Draw a stage. Every picture comes as often as its ``repeats`` say before any comes again."""
    rng = random.Random(seed)
    queue: list[tuple[int, list[int]]] = []
    groups, rows = [], []
    for _ in range(batches):
        if not queue:
            queue = _epoch(cache, pictures, batch_size, rng)
        group, members = queue.pop()
        groups.append(group)
        rows.append(members)
    words: dict[str, int] = {}
    captions = [
        [words.setdefault(wording.caption(pictures[cache[g].pictures[m]], rng), len(words)) for m in members]
        for g, members in zip(groups, rows, strict=True)
    ]
    versions = [[rng.randrange(len(cache[g].mean)) for _ in members] for g, members in zip(groups, rows, strict=True)]
    device = cache[0].mean.device
    return BatchPlan(
        groups=groups,
        versions=torch.tensor(versions, device=device),
        pictures=torch.tensor(rows, device=device),
        captions=torch.tensor(captions, device=device),
        ids=text.tokenize(list(words)).to(device),
    )


def _epoch(
    cache: Sequence[CachedLatents], pictures: Sequence[TrainingImage], batch_size: int, rng: random.Random
) -> list[tuple[int, list[int]]]:
    """One pass over all pictures as full batches, each of one size; a short last one is filled from its own group."""
    batches = []
    for group, latents in enumerate(cache):
        order = [m for m, picture in enumerate(latents.pictures) for _ in range(pictures[picture].repeats)]
        rng.shuffle(order)
        while len(order) % batch_size:
            order.append(rng.randrange(len(latents.pictures)))
        batches += [(group, order[i : i + batch_size]) for i in range(0, len(order), batch_size)]
    rng.shuffle(batches)
    return batches
