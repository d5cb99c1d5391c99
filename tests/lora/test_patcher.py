"""Patching is exact, changes only the difference, and is undone bit for bit, also after exceptions."""

from __future__ import annotations

import gc
import random
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor

from lora_service.errors import InputError, LoraFileError, WrongBaseError
from lora_service.lora import patcher as patcher_module
from lora_service.lora.lycoris import DoraLayer, FullDifference
from lora_service.lora.patcher import Patcher, PatchReport
from lora_service.lora.scale import Scale, parse_scale
from lora_service.lora.weights import LoraLayer, LoraWeights
from tests.errors import raises
from tests.lora.lora_fakes import (
    TOKEN_NAMES,
    assert_same_state,
    is_attention,
    is_convolution,
    random_lora,
    state_of,
    weights_of,
)
from tests.small_models import FAMILIES, SmallModels, small_models

FULL = Scale(1.0, 1.0)


def differences(models: SmallModels) -> LoraWeights:
    """Return full differences of a kernel, its bias, and a norm's scale and shift."""
    modules = {"conv_in": models.unet.conv_in, "conv_norm_out": models.unet.conv_norm_out}
    changes = {
        path + ending: FullDifference(torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape))
        for path, module in modules.items()
        for ending, parameter in (("", module.weight), (".bias", module.bias))
    }
    return LoraWeights({"unet": changes})


class Cancelled(BaseException):
    """A cancellation as Cog raises it: no ``Exception``."""


def formula(weight: Tensor, *terms: tuple[LoraLayer, float]) -> Tensor:
    """Return ``weight + Σ scale · alpha / rank · up @ down`` in float64."""
    total = weight.double()
    for layer, scale in terms:
        product = layer.up.double().flatten(1) @ layer.down.double().flatten(1)
        total = total + scale * layer.alpha / layer.rank * product.reshape(weight.shape)
    return total


@pytest.mark.parametrize("family", FAMILIES)
def test_changes_of_several_loras_are_summed_with_their_scales(family: str) -> None:
    models = small_models(family)
    patcher = Patcher(models.components, models.tokenizers)
    first = random_lora(models.components, rank=3, alpha=2.0, seed=1)
    second = random_lora(
        models.components, rank=5, targets=lambda p, m: is_attention(p, m) or is_convolution(p, m), seed=2
    )
    before = {c: {p: w.clone() for p, w in modules.items()} for c, modules in weights_of(models.components).items()}
    patcher.apply([(first, Scale(0.8, 0.3)), (second, Scale(-0.5, 1.5))])
    for component, modules in weights_of(models.components).items():
        one, two = (0.8, -0.5) if component == "unet" else (0.3, 1.5)
        for path, weight in modules.items():
            terms = [
                (lora.layers[component][path], s)
                for lora, s in ((first, one), (second, two))
                if path in lora.layers[component]
            ]
            expected = formula(before[component][path], *terms).to(weight.dtype)
            torch.testing.assert_close(weight, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_are_cast_once_in_half_precision(dtype: torch.dtype) -> None:
    models = small_models("sd1", dtype)
    before = {path: weight.clone() for path, weight in weights_of(models.components)["unet"].items()}
    lora = random_lora(models.components, rank=4)
    Patcher(models.components, models.tokenizers).apply([(lora, FULL), (lora, Scale(0.5, 0.5))])
    after = weights_of(models.components)["unet"]
    for path, layer in lora.layers["unet"].items():
        expected = formula(before[path].float(), (layer, 1.5)).float().to(dtype)
        # A sum in fp32 may round to the neighbour of what float64 rounds to, and to nothing further off.
        assert (
            torch.equal(after[path], expected)
            or (after[path] - expected).abs().max() <= expected.abs().max() * torch.finfo(dtype).eps
        )
        assert (after[path] != expected).float().mean() < 0.01


def test_scales_of_the_unet_and_the_text_encoder_are_apart(models: SmallModels, patcher: Patcher) -> None:
    lora = random_lora(models.components)
    unet, text = models.unet_output(), models.text_output()
    patcher.apply([(lora, Scale(0.0, 1.0))])
    assert torch.equal(models.unet_output(), unet)
    assert not torch.equal(models.text_output(), text)
    patcher.apply([(lora, Scale(1.0, 0.0))])
    assert not torch.equal(models.unet_output(), unet)
    assert torch.equal(models.text_output(), text)


def test_the_text_encoders_alone_are_patched_as_with_the_unet(models: SmallModels, patcher: Patcher) -> None:
    lora = [(random_lora(models.components, tokens=TOKEN_NAMES), Scale(1.0, 0.5))]
    unet = models.unet_output()
    full = patcher.apply(lora)
    text, state, tokenizers = models.text_output(), patcher.text_state, patcher.tokenizers
    assert patcher.apply(lora, text_only=True) == full
    assert torch.equal(models.unet_output(), unet)
    assert torch.equal(models.text_output(), text)
    assert patcher.text_state == state
    assert [len(each) for each in patcher.tokenizers.values()] == [len(each) for each in tokenizers.values()]
    before = state_of(small_models("sd1").components)
    patcher.restore()
    assert_same_state(before, models.components)


def test_restoring_gives_the_very_tensors_back(models: SmallModels, patcher: Patcher) -> None:
    before, unet, text = state_of(models.components), models.unet_output(), models.text_output()
    storages = {name: parameter.data_ptr() for name, parameter in models.unet.named_parameters()}
    patcher.apply([(random_lora(models.components, tokens=TOKEN_NAMES), FULL)])
    patcher.restore()
    assert_same_state(before, models.components)
    assert storages == {name: parameter.data_ptr() for name, parameter in models.unet.named_parameters()}
    assert torch.equal(models.unet_output(), unet)
    assert torch.equal(models.text_output(), text)
    assert patcher.tokenizers == models.tokenizers


def test_the_forward_pass_has_no_wrappers(models: SmallModels, patcher: Patcher) -> None:
    before = [(name, type(module)) for name, module in models.unet.named_modules()]
    patcher.apply([(random_lora(models.components), FULL)])
    assert [(name, type(module)) for name, module in models.unet.named_modules()] == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in models.unet.modules())


def test_weights_in_channels_last_are_patched_and_stay_so(models: SmallModels, patcher: Patcher) -> None:
    models.unet.to(memory_format=torch.channels_last)
    weight = models.unet.conv_in.weight
    before = weight.clone()
    lora = LoraWeights({"unet": {"conv_in": LoraLayer(torch.ones(1, 4, 3, 3), torch.ones(32, 1, 1, 1), 1.0)}})
    patcher.apply([(lora, FULL), (lora, FULL)])
    torch.testing.assert_close(weight, before + 2)
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_models_may_be_cast_between_loras(models: SmallModels, patcher: Patcher) -> None:
    lora = random_lora(models.components)
    patcher.apply([(lora, FULL)])
    patcher.restore()
    models.unet.to(torch.bfloat16)
    before = state_of(models.components)
    patcher.apply([(lora, FULL)])
    assert models.unet.conv_in.weight.dtype == torch.bfloat16
    assert {weight.dtype for weight in weights_of(models.components)["unet"].values()} == {torch.bfloat16}
    patcher.restore()
    assert_same_state(before, models.components)


def test_a_history_of_scales_leaves_no_trace(models: SmallModels, patcher: Patcher) -> None:
    lora = random_lora(models.components)
    patcher.apply([(lora, Scale(0.7, 0.7))])
    direct = state_of(models.components)
    for scale in (1.0, -2.0, 0.1, 0.7):
        patcher.apply([(lora, Scale(scale, scale))])
    assert_same_state(direct, models.components)


def test_only_what_differs_is_merged_anew(
    models: SmallModels, patcher: Patcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    merges: list[int] = []
    merge = patcher_module.merge

    def counted(*arguments: Any) -> Tensor:
        merges.append(1)
        return merge(*arguments)

    monkeypatch.setattr(patcher_module, "merge", counted)
    lora = random_lora(models.components)
    counts = {component: len(layers) for component, layers in lora.layers.items()}
    small = LoraWeights({"unet": dict(list(lora.layers["unet"].items())[:3])})
    for loras, expected in (
        ([(lora, FULL)], sum(counts.values())),
        ([(lora, FULL)], 0),
        ([(lora, Scale(1.0, 0.5))], counts["text_encoder"]),
        ([(lora, Scale(1.0, 0.5)), (small, FULL)], 3),
        ([(lora, Scale(1.0, 0.5))], 3),
        ([(lora, Scale(0.0, 0.5))], 0),
        ([], 0),
    ):
        merges.clear()
        patcher.apply(loras)
        assert len(merges) == expected


def test_a_report_counts_what_matched(models: SmallModels, patcher: Patcher) -> None:
    lora = random_lora(models.components)
    report = patcher.apply([(lora, FULL)])
    assert report.matched == {"unet": 48, "text_encoder": 8}
    assert (report.unmatched, report.warning) == ((), None)


def test_a_partial_match_is_a_warning_with_the_keys(models: SmallModels, patcher: Patcher) -> None:
    layers = dict(random_lora(models.components).layers["unet"])
    layers["down_blocks.7.attentions.0.proj_in"] = next(iter(layers.values()))
    report = patcher.apply([(LoraWeights({"unet": layers}), FULL)])
    assert report.unmatched == ("unet.down_blocks.7.attentions.0.proj_in",)
    assert report.warning is not None
    assert "1 of 49 changes" in report.warning
    assert "down_blocks.7" in report.warning


def test_a_lora_of_which_nothing_fits_is_an_error(models: SmallModels, patcher: Patcher) -> None:
    lora = LoraWeights({"unet": {"elsewhere.0": LoraLayer(torch.ones(1, 4), torch.ones(4, 1), 1.0)}})
    with raises(LoraFileError, code="no_matching_keys") as caught:
        patcher.apply([(lora, FULL)])
    assert "unet.elsewhere.0" in str(caught.value)
    with raises(LoraFileError, code="no_matching_keys"):
        patcher.apply([(LoraWeights({}), FULL)])


def full_size_lora(width: int, metadata: dict[str, str] | None = None, *, second: bool = False) -> LoraWeights:
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    layers = {"unet": {path: LoraLayer(torch.ones(1, width), torch.ones(320, 1), 1.0)}}
    if second:
        layers["text_encoder_2"] = {"encoder.layers.0.mlp.fc1": LoraLayer(torch.ones(1, 4), torch.ones(4, 1), 1.0)}
    return LoraWeights(layers, {}, metadata or {})


SMALL_BASE = "a base with a cross_attention_dim of 32"


def assert_both_named(error: WrongBaseError, made_for: str, base: str) -> None:
    assert -1 < str(error).find(made_for) < str(error).rfind(base), error


@pytest.mark.parametrize(
    ("lora", "made_for"),
    [
        (full_size_lora(768), "Stable Diffusion 1.x"),
        (full_size_lora(1024), "Stable Diffusion 2.x"),
        (full_size_lora(2048, second=True), "Stable Diffusion XL"),
        (full_size_lora(48), "a base with a cross_attention_dim of 48"),
    ],
)
def test_a_lora_for_another_base_is_an_error_that_names_both(
    lora: LoraWeights, made_for: str, models: SmallModels, patcher: Patcher
) -> None:
    before = state_of(models.components)
    with raises(WrongBaseError, code="wrong_base") as caught:
        patcher.apply([(random_lora(models.components), FULL), (lora, FULL)])
    assert_both_named(caught.value, made_for, SMALL_BASE)
    assert_same_state(before, models.components)


def test_the_header_names_the_base_where_shapes_do_not() -> None:
    models = small_models("sd1")
    patcher = Patcher(models.components, models.tokenizers)
    layers = {"elsewhere": LoraLayer(torch.ones(1, 4), torch.ones(4, 1), 1.0)}
    lora = LoraWeights({"unet": layers}, {}, {"ss_base_model_version": "sdxl_base_v1-0"})
    with raises(WrongBaseError, code="wrong_base") as caught:
        patcher.apply([(lora, FULL)])
    assert_both_named(caught.value, "Stable Diffusion XL", SMALL_BASE)


@pytest.mark.parametrize("error", [Cancelled, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("after", [1, 20, 52])
def test_an_exception_in_the_middle_leaves_the_originals(
    error: type[BaseException], after: int, models: SmallModels, patcher: Patcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state_of(models.components)
    patcher.apply([(random_lora(models.components, tokens=("<old>",), seed=1), FULL)])
    merge, calls = patcher_module.merge, iter(range(10**6))

    def failing(*arguments: Any) -> Tensor:
        if next(calls) == after:
            raise error
        return merge(*arguments)

    monkeypatch.setattr(patcher_module, "merge", failing)
    with pytest.raises(error):
        patcher.apply([(random_lora(models.components, tokens=TOKEN_NAMES, seed=2), FULL)])
    assert_same_state(before, models.components)
    assert patcher.tokenizers == models.tokenizers


def test_a_restore_that_was_interrupted_can_be_finished(
    models: SmallModels, patcher: Patcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state_of(models.components)
    patcher.apply([(random_lora(models.components, tokens=TOKEN_NAMES), FULL)])
    restore_weight, calls = Patcher._restore_weight, iter(range(10**6))

    def interrupted(self: Patcher, key: tuple[str, str]) -> None:
        if next(calls) == 10:
            raise Cancelled
        restore_weight(self, key)

    monkeypatch.setattr(Patcher, "_restore_weight", interrupted)
    with pytest.raises(Cancelled):
        patcher.restore()
    patcher.restore()
    assert_same_state(before, models.components)
    assert patcher.tokenizers == models.tokenizers


@contextmanager
def cancelled_at_line(number: int) -> Iterator[None]:
    """Raise once, as an asynchronous cancellation does, before the line of that number in patching and its tokens."""
    lines = iter(range(1, number + 1))

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.endswith(("lora/patcher.py", "lora/token_embeddings.py")):
            return None
        if event == "line" and next(lines, 0) == number:
            raise Cancelled
        return trace

    before = sys.gettrace()  # that of the coverage measurement
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def test_a_cancellation_at_any_line_leaves_the_originals(models: SmallModels, patcher: Patcher) -> None:
    before = state_of(models.components)
    encoder = {"text_encoder": models.components["text_encoder"]}
    old = random_lora(encoder, targets=lambda path, _: path.endswith("q_proj"), tokens=("<old>",), seed=1)
    new = random_lora(encoder, targets=lambda path, _: path.endswith(("q_proj", "fc1")), tokens=TOKEN_NAMES, seed=2)
    interrupted = 0
    for number in range(2, 10_000):  # the first is `try` itself, before which nothing has begun
        patcher.apply([(old, FULL)])
        try:
            with cancelled_at_line(number):
                patcher.apply([(new, Scale(1.0, 0.5))])
            break
        except Cancelled:
            interrupted += 1
        assert_same_state(before, models.components)
        assert patcher.tokenizers == models.tokenizers
    assert interrupted > 100


def test_one_by_one_convolutions_and_linear_layers_take_each_others_changes() -> None:
    for family, shape in (("sd1", (32, 4)), ("sd2", (32, 4, 1, 1))):
        models = small_models(family)
        path = "down_blocks.0.attentions.0.proj_in"
        weight = weights_of(models.components)["unet"][path].clone()
        up, down = torch.ones(shape), torch.ones(4, 32, *shape[2:])
        lora = LoraWeights({"unet": {path: LoraLayer(down, up, 4.0)}})
        Patcher(models.components, {}).apply([(lora, FULL)])
        torch.testing.assert_close(weights_of(models.components)["unet"][path], weight + 4)


def test_dora_is_interpolated_between_the_base_and_what_was_trained(models: SmallModels, patcher: Patcher) -> None:
    path = "conv_in"
    weight = weights_of(models.components)["unet"][path].clone()
    inner = LoraLayer(torch.ones(1, 4, 3, 3), torch.ones(32, 1, 1, 1), 1.0)
    layer = DoraLayer(inner, torch.full((32, 1, 1, 1), 2.0))
    patcher.apply([(LoraWeights({"unet": {path: layer}}), Scale(0.5, 1.0))])
    directions = torch.nn.functional.normalize((weight + 1).flatten(1), dim=1).reshape(weight.shape)
    torch.testing.assert_close(weights_of(models.components)["unet"][path], (weight + 2 * directions) / 2)


def random_swap(
    models: SmallModels, chance: random.Random, loras: list[LoraWeights]
) -> list[tuple[LoraWeights, Scale]]:
    chosen = chance.sample(loras, chance.randint(0, 3))
    return [(lora, Scale(chance.choice([0, 0.5, 1, -1.3]), chance.choice([0, 0.5, 1]))) for lora in chosen]


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_thousand_swaps_leave_the_base_as_it_was_and_memory_where_it_was(family: str) -> None:
    models, chance = small_models(family), random.Random(0)
    attention_of = {
        half: (lambda path, module, half=half: is_attention(path, module) and half in path)
        for half in ("attn1", "attn2", "self_attn")
    }
    loras = [
        random_lora(
            models.components,
            rank=chance.choice([1, 2, 5, 8]),
            alpha=chance.choice([None, 3.0]),
            targets=chance.choice([is_attention, is_convolution, *attention_of.values()]),
            tokens=chance.choice([(), TOKEN_NAMES, ("<s1>",), ("<cat>", "word")]),
            seed=seed,
        )
        for seed in range(8)
    ]
    loras = [lora for lora in loras if lora.layers]
    before, unet, text = state_of(models.components), models.unet_output(), models.text_output()
    vocabulary = models.tokenizers["text_encoder"].get_vocab()
    patcher = Patcher(models.components, models.tokenizers)
    memory = 0
    for swap in range(1000 if family == "sd1" else 100):
        patcher.apply(random_swap(models, chance, loras))
        if chance.random() < 0.2:
            patcher.restore()
        if swap == 200:
            gc.collect()
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if memory:
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 32 * 1024  # KiB
    patcher.apply([])
    assert_same_state(before, models.components)
    assert torch.equal(models.unet_output(), unet)
    assert torch.equal(models.text_output(), text)
    assert patcher.tokenizers == models.tokenizers
    assert models.tokenizers["text_encoder"].get_vocab() == vocabulary
    for component, model in models.components.items():
        if component != "unet":
            table = model.get_input_embeddings()
            assert table.num_embeddings == len(table.weight) == len(vocabulary)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_patching_on_a_gpu_is_undone_bit_for_bit(dtype: torch.dtype) -> None:
    models = small_models("sd1", dtype)
    for model in models.components.values():
        model.to("cuda")
    before = state_of(models.components)
    patcher = Patcher(models.components, models.tokenizers)
    lora = random_lora(models.components, tokens=TOKEN_NAMES)
    patcher.apply([(lora, FULL)])
    patcher.apply([(lora, Scale(0.5, 0.5))])
    patcher.restore()
    assert_same_state(before, models.components)


def test_an_empty_report_has_no_warning() -> None:
    assert PatchReport().warning is None


def test_norms_and_biases_are_changed_and_put_back(models: SmallModels, patcher: Patcher) -> None:
    before = state_of(models.components)
    lora = differences(models)
    report = patcher.apply([(lora, Scale(0.5, 0.5))])
    assert report.unmatched == ()
    after = state_of(models.components)
    for path, change in lora.layers["unet"].items():
        name = f"unet.{path}" if path.endswith(".bias") else f"unet.{path}.weight"
        torch.testing.assert_close(after[name], before[name] + 0.5 * change.values)
    patcher.restore()
    assert_same_state(before, models.components)


def test_blocks_have_their_own_scale(models: SmallModels, patcher: Patcher) -> None:
    lora = random_lora(models.components, rank=3, seed=1)
    before = {path: weight.clone() for path, weight in weights_of(models.components)["unet"].items()}
    patcher.apply([(lora, parse_scale("0.5,unet.down:0,unet.up.1:1.5"))])
    for path, layer in lora.layers["unet"].items():
        scale = {"down_blocks": 0.0, "up_blocks": 0.5, "mid_block": 0.5}[path.split(".")[0]]
        scale = 1.5 if path.startswith("up_blocks.1.") else scale
        expected = formula(before[path], (layer, scale)).float()
        torch.testing.assert_close(weights_of(models.components)["unet"][path], expected, atol=1e-6, rtol=1e-5)


def test_a_block_that_the_base_lacks_is_an_error_with_those_it_has(models: SmallModels, patcher: Patcher) -> None:
    before = state_of(models.components)
    with raises(InputError, code="unknown_block", field="lora_scales") as caught:
        patcher.apply([(random_lora(models.components), parse_scale("1,unet.up.7:0.5"))])
    assert caught.value.value == "unet.up.7"
    for known in ("text_encoder", "unet", "unet.down.0", "unet.mid", "unet.up.1"):
        assert known in caught.value.expected
    assert_same_state(before, models.components)


@pytest.mark.parametrize("hold_addresses", [False, True])
def test_a_lora_acts_in_its_share_of_the_steps_and_its_tokens_in_all(models: SmallModels, hold_addresses: bool) -> None:
    patcher = Patcher(models.components, models.tokenizers, hold_addresses=hold_addresses)
    before = state_of(models.components)
    early = random_lora(models.components, tokens=TOKEN_NAMES, seed=1)
    late = random_lora(models.components, targets=is_convolution, seed=2)
    unet = {name: value for name, value in before.items() if name.startswith("unet.")}
    patcher.apply([(early, parse_scale("steps:0-0.5"))])
    tokens, text = patcher.tokenizers, models.text_output()
    only_early = state_of(models.components)
    patcher.apply([(early, parse_scale("steps:0-0.5")), (late, parse_scale("0.7,steps:0.5-1"))])
    assert_same_state(only_early, models.components)
    patcher.move_to(0.4)
    assert_same_state(only_early, models.components)
    patcher.move_to(0.5)
    then = state_of(models.components)
    assert patcher.tokenizers == tokens
    assert torch.equal(models.text_output(), text)
    for name, value in unet.items():
        changed = name.removesuffix(".weight").removeprefix("unet.") in late.layers["unet"]
        assert torch.equal(then[name], value) is not changed
    patcher.move_to(0)
    assert_same_state(only_early, models.components)
    patcher.apply([])
    assert_same_state(before, models.components)


def test_an_interrupted_change_between_steps_is_undone(
    models: SmallModels, patcher: Patcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state_of(models.components)
    patcher.apply([(random_lora(models.components, tokens=TOKEN_NAMES), parse_scale("steps:0.5-1"))])
    merge, calls = patcher_module.merge, iter(range(10**6))

    def failing(*arguments: Any) -> Tensor:
        if next(calls) == 10:
            raise Cancelled
        return merge(*arguments)

    monkeypatch.setattr(patcher_module, "merge", failing)
    with pytest.raises(Cancelled):
        patcher.move_to(0.5)
    patcher.restore()
    assert_same_state(before, models.components)
    assert patcher.tokenizers == models.tokenizers


def test_addresses_are_held_where_it_is_asked_for(models: SmallModels) -> None:
    patcher = Patcher(models.components, models.tokenizers, hold_addresses=True)
    before = state_of(models.components)
    addresses = {name: weight.data_ptr() for name, weight in models.unet.named_parameters()}
    chance, plain = random.Random(1), small_models("sd1")
    loras = [random_lora(models.components, rank=2, seed=seed) for seed in range(3)]
    loras.append(random_lora(models.components, targets=is_convolution, seed=9))
    reference = Patcher(plain.components, plain.tokenizers)
    for _ in range(20):
        swap = random_swap(models, chance, loras)
        patcher.apply(swap)
        reference.apply(swap)
        assert_same_state(state_of(plain.components), models.components)
        assert {name: weight.data_ptr() for name, weight in models.unet.named_parameters()} == addresses
    patcher.restore()
    assert_same_state(before, models.components)
