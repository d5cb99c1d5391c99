"""Prompt embeds of one text encoder and of two, against diffusers'."""

import pytest
import torch

from lora_service.models.text_encoders import PromptEmbeds
from lora_service.training.textual_inversion import added_tokens
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
