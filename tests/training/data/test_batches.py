"""The pictures, versions and captions that the steps see."""

from collections import Counter

import pytest
import torch

from lora_service.dataset.captions.templates import TagOptions
from lora_service.models.clip_text_encoders import ClipTextEncoders
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.text_encoders import TokenIds
from lora_service.training.data import batches
from lora_service.training.data.batches import BatchPlan, CaptionSampler
from lora_service.training.data.latent_cache import cache_latents
from tests.small_base import picture, small_base

TAGS = TagOptions()


def captions_of(plan: BatchPlan, i: int, base: DiffusionBase) -> list[str]:
    """Return the captions of batch ``i``, from its token ids."""
    ids = plan.token_ids(i).by_encoder["text_encoder"]
    return [base.tokenizers["text_encoder"].decode(row, skip_special_tokens=True) for row in ids]


def test_every_picture_comes_as_often_as_its_repeats_say() -> None:
    base = small_base()
    pictures = [picture("red"), picture("green", repeats=3)]
    cache = cache_latents(pictures, base, flip=False, color_jitter=False, seed=0)
    plan = BatchPlan(cache, pictures, CaptionSampler(((("x", 1.0),),), TAGS), base.text, batch_size=1, seed="s")
    drawn = [plan[i] for i in range(40)]
    assert Counter(torch.cat([batch.images for batch in drawn]).tolist()) == {0: 10, 1: 30}


def test_batches_hold_one_size_and_no_picture_more_often_than_it_should() -> None:
    base = small_base()
    pictures = [picture("red"), picture("green", size=(48, 32)), picture("blue", size=(48, 32)), picture("black")]
    cache = cache_latents(pictures, base, flip=False, color_jitter=False, seed=0)
    plan = BatchPlan(cache, pictures, CaptionSampler(((("x", 1.0),),), TAGS), base.text, batch_size=3, seed="s")
    drawn = [plan[i] for i in range(6)]
    assert {batch.bucket for batch in drawn} == {0, 1}
    for members in (batch.images for batch in drawn):
        assert sorted(members.tolist()) == [0, 1]


def test_batches_are_full_where_there_are_enough_pictures() -> None:
    base = small_base()
    pictures = [picture(color) for color in ("red", "green", "blue", "black", "white")]
    cache = cache_latents(pictures, base, flip=False, color_jitter=False, seed=0)
    sampler = CaptionSampler(((("x", 1.0),),), TAGS)
    plan = BatchPlan(cache, pictures, sampler, base.text, batch_size=4, seed="s")
    drawn = [plan[i] for i in range(10)]
    assert {len(batch.images) for batch in drawn} == {4}
    assert set(Counter(torch.cat([batch.images for batch in drawn]).tolist()).values()) == {8}
    assert {batch.weight for batch in drawn} == {1.0}


def test_a_lone_shape_has_its_fair_share_of_large_batches() -> None:
    """One panorama beside 8 squares is a ninth of what is seen, and of what a step learns."""
    base = small_base()
    pictures = [picture("red", size=(48, 32)), *(picture("green") for _ in range(8))]
    cache = cache_latents(pictures, base, flip=False, color_jitter=False, seed=0)
    sampler = CaptionSampler(((("x", 1.0),),), TAGS)
    plan = BatchPlan(cache, pictures, sampler, base.text, batch_size=8, seed="s")
    drawn = [plan[i] for i in range(20)]
    seen = Counter(cache[batch.bucket].images[m] for batch in drawn for m in batch.images.tolist())
    assert set(seen.values()) == {10}
    weights = {cache[batch.bucket].images[0]: batch.weight for batch in drawn}
    assert weights[0] / weights[1] == 1 / 8
    assert sum(batch.weight for batch in drawn) / len(drawn) == pytest.approx(1)


def test_a_subject_that_shuffling_moves_beyond_the_window_comes_back() -> None:
    base = small_base()
    tags = ", ".join(["dog"] * 60)
    pictures = [picture(captions=(f"{tags}, {{}}",))]
    cache = cache_latents(pictures, base, flip=False, color_jitter=False, seed=0)
    sampler = CaptionSampler(((("cat", 1.0),),), TagOptions(shuffle_tags=True, keep_tokens=0))
    plan = BatchPlan(cache, pictures, sampler, base.text, batch_size=1, seed="s")
    texts = [text for i in range(60) for text in captions_of(plan, i, base)]
    assert len(set(texts)) > 10
    assert all("cat" in text for text in texts)


def test_spellings_share_the_captions_as_they_should() -> None:
    base = small_base()
    pictures = [picture()]
    cache = cache_latents(pictures, base, flip=True, color_jitter=False, seed=0)
    captions = CaptionSampler(((("dog", 0.7), ("cat", 0.3)),), TAGS)
    plan = BatchPlan(cache, pictures, captions, base.text, batch_size=1, seed="s")
    drawn = [plan[i] for i in range(2000)]
    texts = [text for i in range(2000) for text in captions_of(plan, i, base)]
    counts = Counter("cat" if "cat" in text else "dog" for text in texts)
    assert 500 < counts["cat"] < 700
    assert len(plan.block_of(0).texts) == 2
    assert 850 < torch.cat([batch.variants for batch in drawn]).sum().item() < 1150  # mirrored half the time


def test_each_pictures_captions_name_its_own_subject() -> None:
    base = small_base()
    pictures = [picture("red"), picture("green", subject=1)]
    cache = cache_latents(pictures, base, flip=False, color_jitter=False, seed=0)
    captions = CaptionSampler(((("dog", 1.0),), (("cat", 0.5), ("beach", 0.5))), TAGS)
    plan = BatchPlan(cache, pictures, captions, base.text, batch_size=1, seed="s")
    named: dict[int, set[str]] = {0: set(), 1: set()}
    for i in range(40):
        (text,) = captions_of(plan, i, base)
        named[cache[0].images[int(plan[i].images)]].add(text.split()[-1])
    assert named == {0: {"dog"}, 1: {"cat", "beach"}}


def test_captions_are_drawn_and_tokenized_as_the_steps_come_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    base = small_base()
    pictures = [picture(captions=tuple(f"{{}} {'abcdefgh'[i % 8]} {i}" for i in range(60)))]
    cache = cache_latents(pictures, base, flip=False, color_jitter=False, seed=0)
    monkeypatch.setattr(batches, "CAPTIONS_PER_BLOCK", 8)
    tokenized: list[str] = []
    tokenize = ClipTextEncoders.tokenize

    def recorded(self: ClipTextEncoders, texts: list[str], chunks: int = 1) -> TokenIds:
        tokenized.extend(texts)
        return tokenize(self, texts, chunks)

    monkeypatch.setattr(ClipTextEncoders, "tokenize", recorded)
    plan = BatchPlan(cache, pictures, CaptionSampler(((("dog", 1.0),),), TAGS), base.text, batch_size=1, seed="s")
    counts = []
    for i in range(40):
        row = plan.token_ids(i).by_encoder["text_encoder"]
        (text,) = (plan.block_of(i).texts[caption] for caption in plan[i].captions.tolist())
        assert torch.equal(row, tokenize(base.text, [text]).by_encoder["text_encoder"])
        counts.append(len(tokenized))
    assert 4 < counts[0] == counts[7] <= 8 < counts[8] <= 16
    assert 20 < counts[-1] <= 40


def test_a_plan_that_begins_anywhere_goes_on_as_one_from_the_start() -> None:
    base = small_base()
    pictures = [picture("red"), picture("green", repeats=2), picture("blue", size=(48, 32)), picture("black")]
    cache = cache_latents(pictures, base, flip=True, color_jitter=False, seed=0)
    captions = CaptionSampler(((("dog", 0.5), ("cat", 0.5)),), TagOptions(caption_dropout=0.2))

    def content(plan: BatchPlan, i: int) -> tuple[object, ...]:
        batch, ids = plan[i], plan.token_ids(i).by_encoder["text_encoder"]
        return batch.bucket, batch.images.tolist(), batch.variants.tolist(), ids.tolist(), batch.weight

    whole = BatchPlan(cache, pictures, captions, base.text, batch_size=3, seed="s")
    expected = [content(whole, i) for i in range(200)]
    for start in (0, 1, 41, 42, 43, 130):
        plan = BatchPlan(cache, pictures, captions, base.text, batch_size=3, seed="s")
        assert [content(plan, i) for i in range(start, 200)] == expected[start:]
    assert [content(whole, i) for i in (199, 3, 90)] == [expected[i] for i in (199, 3, 90)]


def test_a_batch_is_as_long_as_its_longest_caption_needs() -> None:
    base = small_base()
    long = "{} " + "dog " * 100
    pictures = [picture("red"), picture("green", captions=(long,)), picture("blue", captions=(long * 3,))]
    cache = cache_latents(pictures, base, flip=False, color_jitter=False, seed=0)
    for chunks, expected in ((1, {1}), (2, {1, 2}), (3, {1, 2, 3})):
        sampler = CaptionSampler(((("cat", 1.0),),), TAGS, chunks)
        plan = BatchPlan(cache, pictures, sampler, base.text, batch_size=1, seed="s")
        seen = set()
        for i in range(6):
            row = plan.token_ids(i).by_encoder["text_encoder"]
            (text,) = (plan.block_of(i).texts[caption] for caption in plan[i].captions.tolist())
            assert torch.equal(row, base.text.tokenize([text], plan[i].chunks).by_encoder["text_encoder"])
            seen.add(plan[i].chunks)
        assert seen == expected


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    base = small_base()
    pictures = [picture("red"), picture("green"), picture("blue")]
    cache = cache_latents(pictures, base, flip=True, color_jitter=False, seed=0)
    captions = CaptionSampler(((("dog", 0.5), ("cat", 0.5)),), TAGS)
    one, same, other = (
        [BatchPlan(cache, pictures, captions, base.text, batch_size=2, seed=seed)[i] for i in range(20)]
        for seed in ("a", "a", "b")
    )
    for name in ("images", "captions", "variants"):
        first, again, others = (torch.cat([getattr(batch, name) for batch in plan]) for plan in (one, same, other))
        assert torch.equal(first, again)
        assert not torch.equal(first, others)
