"""What learns is put in and taken out without a trace."""

import peft
import pytest
import torch

from lora_service.errors import InputError
from lora_service.training.lora_layers import LoraLinear, lora_layers
from lora_service.training.textual_inversion import added_tokens, initial_embeddings, pull_norms
from tests.small_base import hashes, small_base

ENCODER = "text_encoder"


def ids_of(tokenizer: object, text: str) -> torch.Tensor:
    return tokenizer(text, return_tensors="pt").input_ids  # type: ignore[operator]


def test_new_tokens_use_their_rows_and_leave_everything_else_alone() -> None:
    base = small_base()
    before, vocabulary = hashes(base), len(base.tokenizers[ENCODER])
    plain = ids_of(base.tokenizers[ENCODER], "a photo of a dog")
    expected = base.text.encoders[ENCODER](plain)[0]
    dog = base.text.encoders[ENCODER].get_input_embeddings().weight[plain[0, -2]]
    with added_tokens(base, ("<s1>",), {ENCODER: dog[None].clone()}) as new:
        tokenizer, rows = new.text.tokenizers[ENCODER], new.rows[ENCODER]
        assert torch.equal(base.text.encoders[ENCODER](ids_of(tokenizer, "a photo of a dog"))[0], expected)
        # A new word with the row of "dog" is "dog".
        torch.testing.assert_close(base.text.encoders[ENCODER](ids_of(tokenizer, "a photo of a <s1>"))[0], expected)
        assert [p for p in base.text.encoders[ENCODER].parameters() if p.requires_grad] == [rows.rows]
    assert hashes(base) == before
    assert len(base.tokenizers[ENCODER]) == vocabulary


def test_tokens_are_taken_out_after_an_error() -> None:
    base = small_base()
    table = base.text.encoders[ENCODER].get_input_embeddings()
    with (
        pytest.raises(KeyboardInterrupt),
        added_tokens(base, ("<s1>",), {ENCODER: torch.zeros(1, table.embedding_dim)}),
    ):
        raise KeyboardInterrupt
    assert base.text.encoders[ENCODER].get_input_embeddings() is table


def test_a_word_that_the_base_knows_cannot_be_a_new_token() -> None:
    base = small_base()
    known = next(word for word in base.tokenizers[ENCODER].get_vocab() if word.endswith("</w>"))
    with (
        pytest.raises(InputError, match="placeholder_tokens"),
        added_tokens(base, (known,), {ENCODER: torch.zeros(1, 32)}),
    ):
        pass


def test_rows_start_at_the_given_words_and_the_rest_at_random() -> None:
    base = small_base()
    rows = initial_embeddings(base, ("<s1>", "<s2>"), ("dog",), torch.Generator().manual_seed(0))[ENCODER]
    ids = base.tokenizers[ENCODER]("dog", add_special_tokens=False).input_ids
    table = base.text.encoders[ENCODER].get_input_embeddings().weight
    torch.testing.assert_close(rows[0], table[ids].mean(dim=0))
    assert rows[1].std().item() == pytest.approx(base.defaults.token_std, rel=0.5)


@pytest.mark.parametrize(("rate", "expected"), [(1.0, 0.4), (0.005, 0.7), (0.0, 1.0)])
def test_norms_are_pulled_by_the_original_rule(rate: float, expected: float) -> None:
    rows = torch.nn.functional.normalize(torch.randn(3, 16), dim=-1)
    pull_norms(rows, 0.4, rate)
    torch.testing.assert_close(rows.norm(dim=-1), torch.full((3,), expected))


def test_layers_cover_attention_and_geglu_and_change_nothing_at_first() -> None:
    base = small_base()
    before = hashes(base)
    ids = ids_of(base.tokenizers[ENCODER], "a photo of a dog")
    expected = base.text.encoders[ENCODER](ids)[0]
    generator = torch.Generator().manual_seed(0)
    with (
        lora_layers("unet", base.unet, 4, 4.0, generator) as unet,
        lora_layers(ENCODER, base.text.encoders[ENCODER], 4, 4.0, generator) as text,
    ):
        torch.testing.assert_close(base.text.encoders[ENCODER](ids)[0], expected)
        endings = {path.split("transformer_blocks.0.")[1] for path in unet}
        attention = {f"attn{n}.{part}" for n in (1, 2) for part in ("to_q", "to_k", "to_v", "to_out.0")}
        assert endings == attention | {"ff.net.0.proj"}
        assert len(text) == 4 * base.text.encoders[ENCODER].config.num_hidden_layers
    assert hashes(base) == before
    assert not any(isinstance(m, LoraLinear) for m in (*base.unet.modules(), *base.text.encoders[ENCODER].modules()))


def test_a_layer_computes_what_pefts_does() -> None:
    linear = torch.nn.Linear(12, 20)
    ours = LoraLinear(linear, rank=3, alpha=6.0, generator=torch.Generator().manual_seed(0))
    torch.nn.init.normal_(ours.up)
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["0"])
    theirs = peft.get_peft_model(torch.nn.Sequential(linear), config)
    layer = theirs.base_model.model[0]
    layer.lora_A["default"].weight.data.copy_(ours.down.data)
    layer.lora_B["default"].weight.data.copy_(ours.up.data)
    x = torch.randn(2, 5, 12)
    torch.testing.assert_close(ours(x), theirs(x))
