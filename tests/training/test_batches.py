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
    assert Counter(plan.images.flatten().tolist()) == {0: 10, 1: 30}


def test_batches_hold_one_size_and_are_always_full() -> None:
    base = small_base()
    pictures = [picture("red"), picture("green", size=(48, 32)), picture("blue", size=(48, 32)), picture("black")]
    cache = cache_latents(pictures, base, flip=False, color_jitter=False, seed=0)
    plan = plan_batches(
        cache, pictures, CaptionSampler((("x", 1.0),), TAGS), base.text, batches=6, batch_size=3, seed="s"
    )
    assert plan.images.shape == (6, 3)
    assert set(plan.buckets) == {0, 1}
    for group, members in zip(plan.buckets, plan.images.tolist(), strict=True):
        assert set(members) <= set(range(len(cache[group].images)))


def test_spellings_share_the_captions_as_they_should() -> None:
    base = small_base()
    pictures = [picture()]
    cache = cache_latents(pictures, base, flip=True, color_jitter=False, seed=0)
    captions = CaptionSampler((("dog", 0.7), ("cat", 0.3)), TAGS)
    plan = plan_batches(cache, pictures, captions, base.text, batches=2000, batch_size=1, seed="s")
    tokenizer, ids = base.tokenizers["text_encoder"], plan.token_ids.all().by_encoder["text_encoder"]
    texts = [tokenizer.decode(ids[i], skip_special_tokens=True) for i in plan.captions.flatten().tolist()]
    counts = Counter("cat" if "cat" in text else "dog" for text in texts)
    assert 500 < counts["cat"] < 700
    assert len(plan.token_ids) == 2
    assert 850 < plan.variants.sum().item() < 1150  # mirrored half the time


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
    assert torch.equal(torch.stack(ids), expected[plan.captions])


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    base = small_base()
    pictures = [picture("red"), picture("green"), picture("blue")]
    cache = cache_latents(pictures, base, flip=True, color_jitter=False, seed=0)
    captions = CaptionSampler((("dog", 0.5), ("cat", 0.5)), TAGS)
    one, same, other = (
        plan_batches(cache, pictures, captions, base.text, batches=20, batch_size=2, seed=seed)
        for seed in ("a", "a", "b")
    )
    assert torch.equal(one.images, same.images)
    assert torch.equal(one.captions, same.captions)
    assert not torch.equal(one.images, other.images)
