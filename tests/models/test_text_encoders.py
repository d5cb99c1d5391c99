"""Prompt embeds of one text encoder and of two, against diffusers'."""

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lora_service.errors import InputError
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.text_encoders import PromptEmbeds
from lora_service.training.adapters.textual_inversion import added_tokens
from tests.errors import raises
from tests.small_base import pipeline_of, small_base
from tests.small_models import FAMILIES

TEXTS = ["a photo of a dog", "cat", "the beach on the beach"]


@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_embeds_are_those_of_diffusers(family: str) -> None:
    base = small_base(family=family)
    with torch.no_grad():
        ours = base.text.encode(base.text.tokenize(TEXTS))
        theirs = pipeline_of(base).encode_prompt(
            TEXTS, device=base.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
    assert torch.equal(ours.states, theirs[0])
    assert ours.states.shape == (3, 77, base.text.width)
    if family == "sdxl":
        assert ours.pooled is not None
        assert torch.equal(ours.pooled, theirs[2])
    else:
        assert ours.pooled is None


def test_an_empty_prompt_is_zeros_for_an_xl_and_its_embedding_for_others() -> None:
    xl, other = small_base(family="sdxl"), small_base()
    ids = xl.text.tokenize(["a dog", ""])
    with torch.no_grad():
        embeds, plain = xl.text.encode(ids), other.text.encode(other.text.tokenize(["a dog", ""]))
    assert embeds.pooled is not None
    assert embeds.states[0].abs().min() > 0
    assert embeds.pooled[0].abs().max() > 0
    assert embeds.states[1].abs().max() == embeds.pooled[1].abs().max() == 0
    assert plain.states[1].abs().max() > 0


def test_new_tokens_reach_both_text_encoders_and_leave_the_pooling_at_the_texts_end() -> None:
    base = small_base(family="sdxl")
    ids = {name: t("dog", add_special_tokens=False).input_ids for name, t in base.tokenizers.items()}
    rows = {name: e.get_input_embeddings().weight[ids[name]].clone() for name, e in base.text.encoders.items()}
    with torch.no_grad():
        plain = base.text.encode(base.text.tokenize(["a photo of a dog on the beach"]))
        with added_tokens(base, ("<s1>",), rows) as tokens:
            learned = tokens.text.encode(tokens.text.tokenize(["a photo of a <s1> on the beach"]))
        again = base.text.encode(base.text.tokenize(["a photo of a dog on the beach"]))
    torch.testing.assert_close(learned.states, plain.states)
    torch.testing.assert_close(learned.pooled, plain.pooled)
    assert torch.equal(again.states, plain.states)


def test_gradients_reach_the_new_rows_of_both_text_encoders() -> None:
    base = small_base(family="sdxl")
    start = {name: torch.zeros(1, e.config.hidden_size) for name, e in base.text.encoders.items()}
    with added_tokens(base, ("<s1>",), start) as tokens:
        embeds = tokens.text.encode(tokens.text.tokenize(["a <s1>"]))
        assert embeds.pooled is not None
        (embeds.states.square().mean() + embeds.pooled.square().mean()).backward()
        assert all(table.rows.grad.abs().max() > 0 for table in tokens.embeddings.values())  # type: ignore[union-attr]


def test_parts_of_a_batch_are_what_each_text_gives() -> None:
    base = small_base(family="sdxl")
    ids = base.text.tokenize([*TEXTS, ""])
    with torch.no_grad():
        whole = base.text.encode(ids)
        parts = PromptEmbeds.concatenate([base.text.encode(part) for part in ids.split(3)])
        picked = base.text.encode(ids[torch.tensor([3, 1])])
    torch.testing.assert_close(parts.states, whole.states)
    torch.testing.assert_close(parts.pooled, whole.pooled)
    torch.testing.assert_close(picked.states, whole[torch.tensor([3, 1])].states)
    assert picked.states[0].abs().max() == 0


def test_long_texts_are_counted_and_truncated() -> None:
    base = small_base(family="sdxl")
    assert base.text.count("a photo of a dog") == 5
    assert base.text.tokenize(["dog " * 200]).by_encoder["text_encoder_2"].shape == (1, base.text.positions)
    assert base.text.tokenize(["dog " * 400], 3).by_encoder["text_encoder_2"].shape == (1, 3 * base.text.positions)
    assert [base.text.chunks_for(tokens) for tokens in (0, 75, 76, 150, 151, 225, 1000)] == [1, 1, 2, 2, 3, 3, 3]


WORDS = ("a", "photo", "of", "dog", "cat", "on", "the", "beach")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_long_text_is_its_chunks_encoded_one_by_one(family: str) -> None:
    """Each piece of 75 words, a token each, goes through diffusers' own encoding."""
    base, rng = small_base(family=family), random.Random(0)
    if family == "sd2":  # whose padding is no end of the text
        for tokenizer in base.tokenizers.values():
            tokenizer.pad_token = "<|startoftext|>"
    words = [rng.choice(WORDS) for _ in range(190)]
    pieces = [" ".join(words[start : start + 75]) for start in (0, 75, 150)]
    with torch.no_grad():
        ours = base.text.encode(base.text.tokenize([" ".join(words), "a dog"], 3))
        short = base.text.encode(base.text.tokenize(["a dog"]))
        theirs = [encoded_by_diffusers(base, piece) for piece in pieces]
        # Zeros stand for a whole prompt that is empty, not for the empty rest of one.
        plain = replace(base.text, zeros_for_empty_prompt=False)
        nothing = plain.encode(plain.tokenize([""]))
    torch.testing.assert_close(ours.states[0], torch.cat([states[0] for states, _ in theirs]))
    torch.testing.assert_close(ours.states[1], torch.cat([short.states[0], nothing.states[0], nothing.states[0]]))
    assert (ours.pooled is None) == (family != "sdxl")
    if ours.pooled is not None and short.pooled is not None:
        torch.testing.assert_close(ours.pooled, torch.cat([theirs[0][1], short.pooled]))


def test_an_empty_prompt_of_several_chunks_is_zeros_for_an_xl() -> None:
    base = small_base(family="sdxl")
    embeds = base.text.encode(base.text.tokenize([""], 2))
    assert embeds.states.shape[1] == 2 * base.text.positions
    assert embeds.states.abs().max() == 0


@pytest.mark.parametrize(("family", "first", "own"), [("sd1", 1, 1), ("sd2", 1, 1), ("sdxl", 2, 2)])
def test_clip_skip_is_that_of_diffusers(family: str, first: int, own: int) -> None:
    """diffusers counts the layers that are left out of those that the base reads."""
    base = small_base(family=family)
    layers = min(encoder.config.num_hidden_layers for encoder in base.text.encoders.values())
    states = {}
    for clip_skip in range(first, layers + 1):
        text = base.text.with_clip_skip(clip_skip)
        with torch.no_grad():
            ours = text.encode(text.tokenize(["a photo of a dog"]))
            theirs, pooled = encoded_by_diffusers(base, "a photo of a dog", clip_skip - own)
        torch.testing.assert_close(ours.states, theirs)
        if ours.pooled is not None:
            torch.testing.assert_close(ours.pooled, pooled)
        states[clip_skip] = ours.states
    with torch.no_grad():
        default = base.text.encode(base.text.tokenize(["a photo of a dog"])).states
    assert torch.equal(default, states[own])
    assert all(not torch.equal(default, each) for clip_skip, each in states.items() if clip_skip != own)


def test_a_layer_that_is_not_there_is_refused() -> None:
    with raises(InputError, field="clip_skip"):
        small_base().text.with_clip_skip(20)


def encoded_by_diffusers(base: DiffusionBase, text: str, clip_skip: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the states and, of an XL, the pooled embedding of a text."""
    for encoder in base.text.encoders.values():
        if not hasattr(encoder, "text_model"):  # where diffusers looks for the norm; newer transformers have none
            object.__setattr__(encoder, "text_model", encoder)
    encoded = pipeline_of(base).encode_prompt(
        text,
        device=base.device,
        num_images_per_prompt=1,
        do_classifier_free_guidance=False,
        clip_skip=clip_skip or None,
    )
    return encoded[0], encoded[2] if base.family.name == "sdxl" else encoded[0]
