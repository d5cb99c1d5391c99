"""Tokens and layers are put in and taken out without a trace."""

from typing import Any, get_args

import peft
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from lora_service.errors import InputError
from lora_service.models.families.sd1 import SD1
from lora_service.training.adapters.lora_layers import FusedLoraLinear, LayerOptions, lora_layers
from lora_service.training.adapters.lora_targets import targets_in
from lora_service.training.adapters.textual_inversion import added_tokens, initial_embeddings, pull_norms
from lora_service.training.inputs.config import LoraKind
from lora_service.training.inputs.input_checks import ORIGINAL_TARGETS
from tests.errors import raises
from tests.small_base import hashes, small_base

ENCODER = "text_encoder"
OPTIONS = LayerOptions(4, 4.0)


def paths_of(component: str, model: torch.nn.Module) -> list[str]:
    return list(targets_in(component, model, ORIGINAL_TARGETS, SD1))


def ids_of(tokenizer: object, text: str) -> torch.Tensor:
    return tokenizer(text, return_tensors="pt").input_ids  # type: ignore[operator]


def test_new_tokens_use_their_rows_and_leave_everything_else_alone() -> None:
    base = small_base()
    before, vocabulary = hashes(base), len(base.tokenizers[ENCODER])
    plain = ids_of(base.tokenizers[ENCODER], "a photo of a dog")
    expected = base.text.encoders[ENCODER](plain)[0]
    dog = base.text.encoders[ENCODER].get_input_embeddings().weight[plain[0, -2]]
    with added_tokens(base, ("<s1>",), {ENCODER: dog[None].clone()}) as new:
        tokenizer, rows = new.text.tokenizers[ENCODER], new.embeddings[ENCODER]
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
        raises(InputError, field="placeholder_tokens", code="token_exists"),
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
    before, encoder = hashes(base), base.text.encoders[ENCODER]
    ids = ids_of(base.tokenizers[ENCODER], "a photo of a dog")
    expected = encoder(ids)[0]
    generator = torch.Generator().manual_seed(0)
    with (
        lora_layers(base.unet, paths_of("unet", base.unet), OPTIONS, generator) as unet,
        lora_layers(encoder, paths_of(ENCODER, encoder), OPTIONS, generator) as text,
    ):
        torch.testing.assert_close(base.text.encoders[ENCODER](ids)[0], expected)
        endings = {path.split("transformer_blocks.0.")[1] for path in unet}
        attention = {f"attn{n}.{part}" for n in (1, 2) for part in ("to_q", "to_k", "to_v", "to_out.0")}
        assert endings == attention | {"ff.net.0.proj"}
        assert len(text) == 4 * base.text.encoders[ENCODER].config.num_hidden_layers
    assert hashes(base) == before
    assert not any(isinstance(m, BaseTunerLayer) for part in base.components.values() for m in part.modules())
    assert not any(hasattr(part, "peft_config") for part in base.components.values())


def fused(linear: torch.nn.Linear, **options: Any) -> FusedLoraLinear:
    config = peft.LoraConfig(r=3, lora_alpha=6, **options)
    return FusedLoraLinear(linear, "default", config=config, r=3, lora_alpha=6)


@pytest.mark.parametrize(
    "options",
    [{}, {"lora_bias": True}, {"lora_dropout": 0.5}, {"use_dora": True}, {"use_rslora": True}],
    ids=["plain", "bias", "dropout", "dora", "rslora"],
)
def test_a_layer_computes_what_pefts_does(options: dict[str, Any]) -> None:
    linear = torch.nn.Linear(12, 20)
    ours, theirs = (
        fused(linear, **options),
        peft.tuners.lora.Linear(
            linear, "default", config=peft.LoraConfig(r=3, lora_alpha=6, **options), r=3, lora_alpha=6
        ),
    )
    for layer in (ours, theirs):
        torch.manual_seed(0)
        for parameter in (*layer.lora_A.parameters(), *layer.lora_B.parameters()):
            torch.nn.init.normal_(parameter)
    x = torch.randn(2, 5, 12)
    outputs, gradients = [], []
    for layer in (ours, theirs):
        torch.manual_seed(1)
        out = layer(x)
        out.square().mean().backward()
        outputs.append(out)
        gradients.append([p.grad for p in (*layer.lora_A.parameters(), *layer.lora_B.parameters())])
    torch.testing.assert_close(*outputs)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_switched_off_layer_is_its_base() -> None:
    linear = torch.nn.Linear(12, 20)
    layer = fused(linear)
    torch.nn.init.normal_(layer._factors.up)
    x = torch.randn(2, 12)
    assert not torch.equal(layer(x), linear(x))
    layer.enable_adapters(False)
    assert torch.equal(layer(x), linear(x))


@pytest.mark.parametrize("kind", get_args(LoraKind))
def test_what_learns_is_fp32_in_a_half_precision_base_and_the_seed_alone_decides_its_start(kind: LoraKind) -> None:
    unet = small_base().unet.to(torch.bfloat16)
    paths = targets_in("unet", unet, "kohya+conv", SD1)
    starts = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed + 5)
        with lora_layers(unet, paths, LayerOptions(4, 4.0, kind), torch.Generator().manual_seed(seed)) as layers:
            learned = [p for layer in layers.values() for p in layer.parameters.values()]
            assert {p.dtype for p in learned} == {torch.float32}
            starts.append(torch.cat([p.detach().flatten() for p in learned]))
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_a_component_without_targets_has_no_layers() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1))
    with lora_layers(model, paths_of("unet", model), OPTIONS, torch.Generator()) as layers:
        assert layers == {}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("when", ["injecting", "learning"])
def test_layers_are_taken_out_after_an_error_or_a_cancel(
    error: type[BaseException], when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = small_base()
    before, modules = hashes(base), [type(m) for m in base.unet.modules()]
    if when == "injecting":
        calls, make = [], FusedLoraLinear.__init__

        def break_off(self: FusedLoraLinear, *args: Any, **kwargs: Any) -> None:
            calls.append(1)
            if len(calls) == 5:
                raise error
            make(self, *args, **kwargs)

        monkeypatch.setattr(FusedLoraLinear, "__init__", break_off)
    with pytest.raises(error), lora_layers(base.unet, paths_of("unet", base.unet), OPTIONS, torch.Generator()):
        raise error
    assert hashes(base) == before
    assert [type(m) for m in base.unet.modules()] == modules
    assert not hasattr(base.unet, "peft_config")


def test_tokens_whose_names_differ_by_case_alone_learn_apart() -> None:
    base = small_base()
    rows = torch.randn(2, base.text.encoders[ENCODER].config.hidden_size)
    with added_tokens(base, ("<a>", "<A>"), {ENCODER: rows}) as new:
        tokenizer, learned = new.text.tokenizers[ENCODER], new.embeddings[ENCODER]
        ids = ids_of(tokenizer, "<a> <A>")[0, 1:-1]
        assert ids.tolist() == [learned.first, learned.first + 1]
        torch.testing.assert_close(learned(ids[None])[0], rows)
        # A name matches as it is spelled, in training as in inference.
        assert not set(ids_of(tokenizer, "<B>")[0].tolist()) & set(ids.tolist())
        learned(ids[None]).sum().backward()
        assert learned.rows.grad is not None
        assert (learned.rows.grad != 0).all()
