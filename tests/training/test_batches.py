"""Which pictures, versions and captions the steps see."""

from collections import Counter

import pytest
import torch

from lora_service.dataset.captions.templates import TagOptions
from lora_service.models.text_encoders import TextEncoders
from lora_service.training.batches import CaptionSampler, LazyTokenIds, plan_batches
from lora_service.training.latent_cache import cache_latents
from tests.small_base import picture, small_base

TAGS = TagOptions()


def test_every_picture_comes_as_often_as_its_repeats_say() -> None:
    base = small_base()
    pictures = [picture("red"), picture("green", repeats=3)]
    cache = cache_latents(pictures, base, flip=False, color_jitter=False, seed=0)
    plan = plan_batches(
        cache, pictures, CaptionSampler((("x", 1.0),), TAGS), base.text, batches=40, batch_size=1, seed="s"
    )
    assert Counter(torch.cat(plan.images).tolist()) == {0: 10, 1: 30}


def test_batches_hold_one_size_and_no_picture_more_often_than_it_should() -> None:
    base = small_base()
    pictures = [picture("red"), picture("green", size=(48, 32)), picture("blue", size=(48, 32)), picture("black")]
    cache = cache_latents(pictures, base, flip=False, color_jitter=False, seed=0)
    plan = plan_batches(
        cache, pictures, CaptionSampler((("x", 1.0),), TAGS), base.text, batches=6, batch_size=3, seed="s"
    )
    assert set(plan.buckets) == {0, 1}
    for members in plan.images:
        assert sorted(members.tolist()) == [0, 1]


def test_batches_are_full_where_there_are_enough_pictures() -> None:
    base = small_base()
    pictures = [picture(color) for color in ("red", "green", "blue", "black", "white")]
    cache = cache_latents(pictures, base, flip=False, color_jitter=False, seed=0)
    sampler = CaptionSampler((("x", 1.0),), TAGS)
    plan = plan_batches(cache, pictures, sampler, base.text, batches=10, batch_size=4, seed="s")
    assert {len(row) for row in plan.images} == {4}
    assert set(Counter(torch.cat(plan.images).tolist()).values()) == {8}
    assert set(plan.weights) == {1.0}


def test_a_lone_shape_has_its_fair_share_of_large_batches() -> None:
    """One panorama beside 8 squares is a ninth of what is seen, and of what a step learns."""
    base = small_base()
    pictures = [picture("red", size=(48, 32)), *(picture("green") for _ in range(8))]
    cache = cache_latents(pictures, base, flip=False, color_jitter=False, seed=0)
    sampler = CaptionSampler((("x", 1.0),), TAGS)
    plan = plan_batches(cache, pictures, sampler, base.text, batches=20, batch_size=8, seed="s")
    seen = Counter(cache[b].images[m] for b, row in zip(plan.buckets, plan.images, strict=True) for m in row.tolist())
    assert set(seen.values()) == {10}
    weights = {cache[b].images[0]: weight for b, weight in zip(plan.buckets, plan.weights, strict=True)}
    assert weights[0] / weights[1] == 1 / 8
    assert sum(plan.weights) / len(plan.weights) == pytest.approx(1)


def test_a_subject_that_shuffling_moves_beyond_the_window_comes_back() -> None:
    base = small_base()
    tags = ", ".join(["dog"] * 60)
    pictures = [picture(captions=(f"{tags}, {{}}",))]
    cache = cache_latents(pictures, base, flip=False, color_jitter=False, seed=0)
    sampler = CaptionSampler((("cat", 1.0),), TagOptions(shuffle_tags=True, keep_tokens=0))
    plan = plan_batches(cache, pictures, sampler, base.text, batches=60, batch_size=1, seed="s")
    ids = plan.token_ids.all().by_encoder["text_encoder"]
    texts = [base.tokenizers["text_encoder"].decode(row, skip_special_tokens=True) for row in ids]
    assert len(texts) > 10
    assert all("cat" in text for text in texts)


def test_spellings_share_the_captions_as_they_should() -> None:
    base = small_base()
    pictures = [picture()]
    cache = cache_latents(pictures, base, flip=True, color_jitter=False, seed=0)
    captions = CaptionSampler((("dog", 0.7), ("cat", 0.3)), TAGS)
    plan = plan_batches(cache, pictures, captions, base.text, batches=2000, batch_size=1, seed="s")
    tokenizer, ids = base.tokenizers["text_encoder"], plan.token_ids.all().by_encoder["text_encoder"]
    texts = [tokenizer.decode(ids[i], skip_special_tokens=True) for i in torch.cat(plan.captions).tolist()]
    counts = Counter("cat" if "cat" in text else "dog" for text in texts)
    assert 500 < counts["cat"] < 700
    assert len(plan.token_ids) == 2
    assert 850 < torch.cat(plan.variants).sum().item() < 1150  # mirrored half the time


def test_captions_are_tokenized_as_the_steps_come_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    base = small_base()
    pictures = [picture(captions=tuple(f"{{}} {'abcdefgh'[i % 8]} {i}" for i in range(60)))]
    cache = cache_latents(pictures, base, flip=False, color_jitter=False, seed=0)
    monkeypatch.setattr(LazyTokenIds, "BLOCK", 8)
    plan = plan_batches(
        cache, pictures, CaptionSampler((("dog", 1.0),), TAGS), base.text, batches=40, batch_size=2, seed="s"
    )
    tokenized: list[str] = []
    tokenize = TextEncoders.tokenize
    monkeypatch.setattr(TextEncoders, "tokenize", lambda self, texts: tokenized.extend(texts) or tokenize(self, texts))
    ids, counts = [], []
    for i in range(40):
        ids.append(plan.batch_token_ids(i).by_encoder["text_encoder"].clone())
        counts.append(len(tokenized))
    assert counts[0] == 8
    assert counts == sorted(counts)
    assert counts[-1] == len(plan.token_ids) == len(set(tokenized))
    expected = tokenize(base.text, tokenized).by_encoder["text_encoder"]
    assert torch.equal(torch.stack(ids), expected[torch.stack(plan.captions)])


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    base = small_base()
    pictures = [picture("red"), picture("green"), picture("blue")]
    cache = cache_latents(pictures, base, flip=True, color_jitter=False, seed=0)
    captions = CaptionSampler((("dog", 0.5), ("cat", 0.5)), TAGS)
    one, same, other = (
        plan_batches(cache, pictures, captions, base.text, batches=20, batch_size=2, seed=seed)
        for seed in ("a", "a", "b")
    )
    assert torch.equal(torch.cat(one.images), torch.cat(same.images))
    assert torch.equal(torch.cat(one.captions), torch.cat(same.captions))
    assert not torch.equal(torch.cat(one.images), torch.cat(other.images))
