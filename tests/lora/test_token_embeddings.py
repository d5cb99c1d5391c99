"""Tokens come and go; tokenizers and tables are as before."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lora_service.errors import WrongBaseError
from lora_service.lora.patcher import Patcher, Scale
from lora_service.lora.token_embeddings import as_text, in_plain_words
from lora_service.lora.weights import LoraSubject, LoraWeights, subjects_to_header
from tests.errors import raises
from tests.lora.lora_fakes import TOKEN_NAMES, assert_same_state, random_lora, state_of
from tests.small_models import FAMILIES, SmallModels, small_models

FULL = Scale(1.0, 1.0)


def only_tokens(models: SmallModels, names: tuple[str, ...], seed: int = 0) -> LoraWeights:
    return LoraWeights({}, random_lora(models.components, tokens=names, seed=seed).embeddings)


def ids(patcher: Patcher, prompt: str) -> list[int]:
    return patcher.tokenizers["text_encoder"](prompt).input_ids[1:-1]


def row(models: SmallModels, token_id: int) -> torch.Tensor:
    return models.components["text_encoder"].get_input_embeddings().weight[token_id]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_text_encoder_gets_its_own_row_of_a_token(family: str) -> None:
    models = small_models(family)
    patcher = Patcher(models.components, models.tokenizers)
    lora = only_tokens(models, TOKEN_NAMES)
    patcher.apply([(lora, FULL)])
    for component, tokenizer in patcher.tokenizers.items():
        table = models.components[component].get_input_embeddings().weight
        found = tokenizer("a photo of <s1><s2> dog").input_ids
        first = len(models.tokenizers[component])
        assert found[4:6] == [first, first + 1]
        for name, token_id in zip(TOKEN_NAMES, found[4:6], strict=True):
            assert torch.equal(table[token_id], lora.embeddings[name][component])


def test_the_original_tokenizers_never_know_the_tokens(models: SmallModels, patcher: Patcher) -> None:
    before = models.tokenizers["text_encoder"].get_vocab()
    patcher.apply([(only_tokens(models, TOKEN_NAMES), FULL)])
    assert models.tokenizers["text_encoder"].get_vocab() == before


def test_prompts_without_the_tokens_read_as_before(models: SmallModels, patcher: Patcher) -> None:
    before = models.text_output("a photo of a dog")
    patcher.apply([(only_tokens(models, TOKEN_NAMES), FULL)])
    assert torch.equal(models.text_output("a photo of a dog"), before)


def test_a_subject_is_called_by_its_tokens_else_by_its_trigger(models: SmallModels, patcher: Patcher) -> None:
    with_trigger = replace(random_lora(models.components), metadata={"modelspec.trigger_phrase": "my dog"})
    report = patcher.apply(
        [(only_tokens(models, TOKEN_NAMES), FULL), (with_trigger, FULL), (random_lora(models.components, seed=2), FULL)]
    )
    assert report.subjects == ("<s1><s2>", "my dog", "")


def test_each_subject_of_a_lora_is_called_by_its_own_tokens(models: SmallModels, patcher: Patcher) -> None:
    subjects = [LoraSubject("zwx dog", ("<s1>",)), LoraSubject("zwx cat", ("<s2>",)), LoraSubject("vok", ())]
    lora = replace(only_tokens(models, TOKEN_NAMES), metadata=subjects_to_header(subjects))
    assert lora.subjects == tuple(subjects)
    report = patcher.apply([(only_tokens(models, ("<s1>",)), FULL), (lora, FULL)])
    assert report.subjects == ("<s1>", "<lora2:s1>")
    assert report.named_subjects[1] == {
        "1": "<lora2:s1>", "2": "<s2>", "3": "vok",
        "zwx dog": "<lora2:s1>", "zwx cat": "<s2>", "vok": "vok", "zwx": "<lora2:s1>",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"trigger": "x"}]', "{}", '{"a": 1}', "[" * 10_000])
def test_a_header_that_does_not_tell_of_subjects_leaves_one(text: str, models: SmallModels) -> None:
    metadata = {"lora_service.subjects": text, "modelspec.trigger_phrase": "my dog"}
    lora = replace(only_tokens(models, TOKEN_NAMES), metadata=metadata)
    assert lora.subjects == (LoraSubject("my dog", TOKEN_NAMES),)


def test_loras_with_tokens_of_one_name_each_keep_their_rows(models: SmallModels, patcher: Patcher) -> None:
    loras = [only_tokens(models, TOKEN_NAMES, seed) for seed in range(3)]
    report = patcher.apply([(lora, FULL) for lora in loras])
    assert report.subjects[0] == "<s1><s2>"
    assert len(set(report.subjects)) == 3
    for lora, subject in zip(loras, report.subjects, strict=True):
        found = ids(patcher, f"a photo of {subject} on the beach")[3:5]
        for token_id, name in zip(found, TOKEN_NAMES, strict=True):
            assert torch.equal(row(models, token_id), lora.embeddings[name]["text_encoder"])


def test_a_lora_at_scale_nothing_adds_no_tokens(models: SmallModels, patcher: Patcher) -> None:
    before = state_of(models.components)
    lora = random_lora(models.components, tokens=TOKEN_NAMES)
    report = patcher.apply([(lora, Scale(0.0, 0.0))])
    assert report.subjects == ("<s1><s2>",)
    assert patcher.tokenizers == models.tokenizers
    assert_same_state(before, models.components)


def test_a_token_named_as_a_part_of_the_vocabulary_does_not_take_its_row(models: SmallModels, patcher: Patcher) -> None:
    known = row(models, models.tokenizers["text_encoder"].convert_tokens_to_ids("a")).clone()
    lora = only_tokens(models, ("a",))
    report = patcher.apply([(lora, FULL)])
    assert report.subjects == ("<lora1:a>",)
    assert torch.equal(row(models, models.tokenizers["text_encoder"].convert_tokens_to_ids("a")), known)
    assert torch.equal(row(models, ids(patcher, "<lora1:a>")[0]), lora.embeddings["a"]["text_encoder"])


def test_a_token_without_brackets_is_a_word_and_not_a_part_of_one(models: SmallModels, patcher: Patcher) -> None:
    without = ids(patcher, "doghouse")
    report = patcher.apply([(only_tokens(models, ("doghous", "doghous_1")), FULL)])
    assert report.subjects == ("doghous doghous_1",)
    assert ids(patcher, "doghouse") == without
    first = len(models.tokenizers["text_encoder"])
    assert ids(patcher, report.subjects[0]) == [first, first + 1]


@pytest.mark.parametrize(
    ("prompt", "expanded"),
    [
        ("a bad, photo", "a bad bad_1 bad_2, photo"),
        ("bad bad", "bad bad_1 bad_2 bad bad_1 bad_2"),
        ("bad bad_1 bad_2", "bad bad_1 bad_2"),
        ("badly bad_1", "badly bad_1"),
        ("x<cat>y", "x<cat> <cat>_1 y"),
        ("<lora2:bad>", "<lora2:bad><lora2:bad_1>"),
    ],
)
def test_a_word_of_several_rows_stands_for_all_of_them(
    models: SmallModels, patcher: Patcher, prompt: str, expanded: str
) -> None:
    first = only_tokens(models, ("bad", "bad_1", "bad_2", "<cat>", "<cat>_1"))
    patcher.apply([(first, FULL), (only_tokens(models, ("bad", "bad_1")), FULL)])
    assert patcher.with_all_rows(prompt) == expanded
    assert patcher.with_all_rows(expanded) == expanded
    patcher.restore()
    assert patcher.with_all_rows(prompt) == prompt


def test_capital_letters_in_a_token_are_kept(models: SmallModels, patcher: Patcher) -> None:
    patcher.apply([(only_tokens(models, ("<Rex>",)), FULL)])
    assert ids(patcher, "a photo of <Rex>")[3:] == [len(models.tokenizers["text_encoder"])]


def test_the_end_of_a_prompt_is_found_although_new_tokens_have_higher_ids() -> None:
    """Published SDXL configurations say EOS is 2, upon which transformers takes the highest id for it."""
    models = small_models("sdxl")
    patcher = Patcher(models.components, models.tokenizers)
    encoder = models.components["text_encoder_2"]
    patcher.apply([(only_tokens(models, TOKEN_NAMES), FULL)])
    tokens = torch.tensor([patcher.tokenizers["text_encoder_2"]("a <s1> dog").input_ids])
    with torch.no_grad():
        output = encoder(tokens)
    torch.testing.assert_close(output.text_embeds[0], encoder.text_projection(output.last_hidden_state[0, -1]))
    patcher.restore()
    assert encoder.text_model.eos_token_id == 2


def test_rows_are_cast_to_the_tables_dtype() -> None:
    models = small_models("sd1", torch.bfloat16)
    patcher = Patcher(models.components, models.tokenizers)
    lora = only_tokens(models, ("<s1>",))
    patcher.apply([(lora, FULL)])
    wanted = lora.embeddings["<s1>"]["text_encoder"].bfloat16()
    assert torch.equal(row(models, ids(patcher, "<s1>")[0]), wanted)


def test_a_token_of_another_width_is_for_another_base(models: SmallModels, patcher: Patcher) -> None:
    lora = LoraWeights({}, {"<s1>": {"text_encoder": torch.ones(768)}})
    with raises(WrongBaseError, code="wrong_width"):
        patcher.apply([(lora, FULL)])


def test_a_token_for_a_second_encoder_is_for_another_base(models: SmallModels, patcher: Patcher) -> None:
    lora = LoraWeights({}, {"<s1>": {"text_encoder_2": torch.ones(48)}})
    with raises(WrongBaseError, code="no_such_encoder"):
        patcher.apply([(lora, FULL)])


@pytest.mark.parametrize(
    ("names", "text"), [((), ""), (("<s1>",), "<s1>"), (("<s1>", "<s2>"), "<s1><s2>"), (("w", "w_1"), "w w_1")]
)
def test_tokens_are_spelled_as_a_prompt_needs_them(names: tuple[str, ...], text: str) -> None:
    assert as_text(names) == text


@pytest.mark.parametrize(
    ("prompt", "plain"),
    [
        ("a photo of <s1><s2>, old", "a photo of zwx dog, old"),
        ("<s1> <s2> and <s2>", "zwx dog and zwx dog"),
        ("<s1><s2><s3>", "zwx dog vok cat"),
        ("my<s1>s", "my zwx dog s"),
        ("a word, word_1 and words", "a ,  and words"),
        ("nothing <s9>", "nothing <s9>"),
    ],
)
def test_plain_words_stand_for_tokens(prompt: str, plain: str) -> None:
    words = {"<s1>": "zwx dog", "<s2>": "zwx dog", "<s3>": "vok cat", "word": "", "word_1": ""}
    assert in_plain_words(prompt, words) == plain
    assert in_plain_words(prompt, {}) == prompt


def test_the_plain_words_of_two_loras_are_their_own_triggers(models: SmallModels, patcher: Patcher) -> None:
    loras = [
        replace(only_tokens(models, ("<s1>",), seed), metadata={"modelspec.trigger_phrase": trigger})
        for seed, trigger in ((1, "zwx dog"), (2, "vok cat"))
    ]
    report = patcher.apply([(lora, FULL) for lora in loras])
    first, second = report.subjects
    assert patcher.plain_text(f"{first} and {second}") == "zwx dog and vok cat"
    patcher.apply([(loras[0], FULL), (loras[1], Scale(0.0, 0.0))])
    assert patcher.plain_text("<s1>") == "zwx dog"
    patcher.restore()
    assert patcher.plain_text("<s1>") == "<s1>"
