"""Prompt embeds of weighted prompts, against the formula on transformers' own outputs."""

from dataclasses import replace

import pytest
import torch

from lora_service.generation.prompt_syntax import parse_prompt
from lora_service.generation.prompt_weights import WeightedEncoder
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.text_encoders import PromptEmbeds
from tests.small_base import small_base
from tests.small_models import FAMILIES


def encoder(base: DiffusionBase, clip_skip: int | None = None) -> WeightedEncoder:
    return WeightedEncoder(base.text.with_clip_skip(clip_skip), lambda prompt: prompt, base.device)


@torch.no_grad()
def encode(base: DiffusionBase, prompt: str, chunks: int = 1, clip_skip: int | None = None) -> PromptEmbeds:
    return encoder(base, clip_skip).encode(parse_prompt(prompt), chunks)


@torch.no_grad()
def today(base: DiffusionBase, prompt: str, chunks: int = 1, clip_skip: int | None = None) -> PromptEmbeds:
    text = base.text.with_clip_skip(clip_skip)
    return text.encode(text.tokenize([prompt], chunks))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prompt", ["a photo of a dog", "", "the beach " * 80, "a dog: 16:9, on [the beach"])
def test_prompts_without_syntax_have_the_same_embeds_bit_for_bit(family: str, prompt: str) -> None:
    base = small_base(family=family)
    chunks = encoder(base).chunks_for(parse_prompt(prompt))
    ours, theirs = encode(base, prompt, chunks), today(base, prompt, base.text.chunks_for(base.text.count(prompt)))
    assert torch.equal(ours.states, theirs.states)
    assert ours.pooled is theirs.pooled is None or torch.equal(ours.pooled, theirs.pooled)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("clip_skip", [None, 2])
def test_a_weight_moves_the_states_of_its_tokens_alone(family: str, clip_skip: int | None) -> None:
    base = replace(small_base(family=family))
    base.text = replace(base.text, zeros_for_empty_prompt=False)
    plain, empty = today(base, "a photo of a dog", clip_skip=clip_skip), today(base, "", clip_skip=clip_skip)
    weighted = encode(base, "a photo of a (dog:1.5)", clip_skip=clip_skip)
    expected = plain.states.clone()
    expected[:, 5] = empty.states[:, 5] + 1.5 * (plain.states[:, 5] - empty.states[:, 5])  # start, a, photo, of, a, dog
    torch.testing.assert_close(weighted.states, expected)
    assert torch.equal(weighted.states[:, :5], plain.states[:, :5])
    if plain.pooled is not None:
        assert weighted.pooled is not None
        assert torch.equal(weighted.pooled, plain.pooled)


def test_a_base_with_zeros_for_an_empty_prompt_is_weighted_from_the_real_states_of_one() -> None:
    base = small_base(family="sdxl")
    real = replace(base, text=replace(base.text, zeros_for_empty_prompt=False))
    assert torch.equal(encode(base, "a (dog:0.5)").states, encode(real, "a (dog:0.5)").states)


def test_break_encodes_both_parts_as_prompts_of_their_own() -> None:
    base = small_base()
    prompt = parse_prompt("a dog BREAK on the beach")
    assert encoder(base).chunks_for(prompt) == 2
    states = encode(base, "a dog BREAK on the beach", 3).states
    for number, alone in enumerate(("a dog", "on the beach", "")):
        torch.testing.assert_close(states[:, 77 * number : 77 * (number + 1)], today(base, alone).states)


def test_long_weighted_prompts_keep_the_weights_of_later_chunks() -> None:
    base = small_base()
    prompt = "a " * 80 + "(dog:1.4)"
    assert encoder(base).chunks_for(parse_prompt(prompt)) == 2
    states, plain = encode(base, prompt, 2).states, today(base, "a " * 80 + "dog", 2).states
    changed = (states != plain).any(dim=2)[0].nonzero().flatten().tolist()
    assert changed == [77 + 1 + 5]


def test_what_is_cut_off_is_known() -> None:
    encodes = encoder(small_base())
    assert not encodes.is_cut(parse_prompt("(a:1.2) " + "a " * 224))
    assert encodes.is_cut(parse_prompt("(a:1.2) " + "a " * 225))
    assert not encodes.is_cut(parse_prompt(" BREAK ".join(["a"] * 8)))
    assert encodes.is_cut(parse_prompt(" BREAK ".join(["a"] * 9)))
    assert encodes.chunks_for(parse_prompt(" BREAK ".join(["a"] * 9))) == 8


def test_escapes_alone_change_no_embeds() -> None:
    base = small_base()
    assert torch.equal(encode(base, r"a \(dog\)").states, today(base, "a (dog)").states)
