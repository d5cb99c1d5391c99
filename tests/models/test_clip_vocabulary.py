"""New tokens with the real CLIP tokenizers: 49,408 entries, and OpenCLIP's padding with "!", whose id is 0."""

from pathlib import Path

import pytest
import torch

from lora_service.lora.token_embeddings import TokenEmbeddings
from lora_service.models.clip_text_encoders import ClipTextEncoders
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.families.sd2 import SD2
from lora_service.models.families.sdxl import SDXL
from lora_service.models.single_file import load_tokenizers
from lora_service.models.text_encoders import TokenIds
from lora_service.settings import Settings
from lora_service.training.adapters.textual_inversion import added_tokens
from tests.clip_vocabulary import ENTRIES, clip_folder
from tests.small_base import small_base

START, END, PAD = 49406, 49407, 0
CAPTION = "a photo of <s1><s2> on the beach"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of a single-file checkpoint with a tokenizer beside it."""
    folder = tmp_path_factory.mktemp("single")
    clip_folder(folder / "tokenizer")
    return folder / "model.safetensors"


@pytest.fixture
def base(checkpoint: Path) -> DiffusionBase:
    """A tiny XL with the real tokenizers."""
    base = small_base(family="sdxl")
    for encoder in base.text.encoders.values():
        encoder.resize_token_embeddings(ENTRIES, mean_resizing=False)
        encoder.requires_grad_(False)
    base.text = ClipTextEncoders(
        base.text.encoders, load_tokenizers(SDXL, checkpoint, "any", Settings()), zeros_for_empty_prompt=True
    )
    return base


def first_text(ids: TokenIds, encoder: str) -> list[int]:
    """Return the first text's token ids up to its end."""
    row = ids.by_encoder[encoder][0].tolist()
    return row[: row.index(END) + 1]


def rows_of(base: DiffusionBase, word: str) -> dict[str, torch.Tensor]:
    ids = {name: t(word, add_special_tokens=False).input_ids for name, t in base.tokenizers.items()}
    return {name: e.get_input_embeddings().weight[ids[name]].clone() for name, e in base.text.encoders.items()}


def test_words_have_clips_ids(base: DiffusionBase) -> None:
    """The expected ids are those in the documentation of the published tokenizer."""
    for encoder, tokenizer in base.tokenizers.items():
        assert len(tokenizer) == ENTRIES
        assert first_text(base.text.tokenize(["A photo of a Cat"]), encoder) == [START, 320, 1125, 539, 320, 2368, END]


def test_the_first_tokenizer_pads_with_its_end_and_openclips_with_0(base: DiffusionBase, checkpoint: Path) -> None:
    ids = base.text.tokenize(["cat"]).by_encoder
    assert ids["text_encoder"][0, 3:].unique().tolist() == [END]
    assert ids["text_encoder_2"][0, 3:].unique().tolist() == [PAD]
    (second,) = load_tokenizers(SD2, checkpoint, "any", Settings()).values()
    assert second.pad_token_id == PAD


def test_new_tokens_get_ids_after_the_vocabulary(base: DiffusionBase) -> None:
    rows = {name: torch.cat([row, row]) for name, row in rows_of(base, "cat").items()}
    with added_tokens(base, ("<s1>", "<s2>"), rows) as tokens:
        for encoder in base.text.encoders:
            plain = first_text(base.text.tokenize(["a photo of on the beach"]), encoder)
            expected = [*plain[:4], ENTRIES, ENTRIES + 1, *plain[4:]]
            assert first_text(tokens.text.tokenize([CAPTION]), encoder) == expected
            assert first_text(tokens.text.tokenize(["a photo of <s1> <s2>, on"]), encoder)[4:6] == [
                ENTRIES,
                ENTRIES + 1,
            ]
    assert all(len(tokenizer) == ENTRIES for tokenizer in base.tokenizers.values())


def test_training_and_generation_encode_a_prompt_alike(base: DiffusionBase) -> None:
    rows = {name: torch.cat([row, row]) for name, row in rows_of(base, "cat").items()}
    by_token = {f"<s{i + 1}>": {name: row[i] for name, row in rows.items()} for i in range(2)}
    with added_tokens(base, ("<s1>", "<s2>"), rows) as tokens:
        trained = tokens.text.tokenize([CAPTION])
        with torch.no_grad():
            learned = tokens.text.encode(trained)
    vocabulary = TokenEmbeddings(base.components, base.tokenizers)
    vocabulary.set([by_token])
    text = base.text.with_tokenizers(vocabulary.tokenizers)
    generated = text.tokenize([CAPTION])
    with torch.no_grad():
        embeds = text.encode(generated)
    vocabulary.restore()
    for encoder, ids in trained.by_encoder.items():
        assert torch.equal(ids, generated.by_encoder[encoder])
    torch.testing.assert_close(embeds.states, learned.states)
    torch.testing.assert_close(embeds.pooled, learned.pooled)


def test_the_pooled_embedding_is_that_of_the_texts_end_with_new_token_ids_above_it(base: DiffusionBase) -> None:
    with torch.no_grad():
        plain = base.text.encode(base.text.tokenize(["a photo of a cat on the beach"]))
        with added_tokens(base, ("<s1>",), rows_of(base, "cat")) as tokens:
            learned = tokens.text.encode(tokens.text.tokenize(["a photo of a <s1> on the beach"]))
    torch.testing.assert_close(learned.pooled, plain.pooled)


def test_a_word_of_several_pieces_and_long_texts_are_counted_in_pieces(base: DiffusionBase) -> None:
    assert base.text.count("zkvi") > 1
    assert base.text.tokenize(["cat " * 100]).by_encoder["text_encoder"][0, -1].item() == END
