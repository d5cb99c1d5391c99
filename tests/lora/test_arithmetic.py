"""Sums, approximations and distances of LoRAs against the dense matrices that they stand for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lora_service.errors import InputError, LoraFileError, WrongBaseError
from lora_service.lora.arithmetic import check_target, compare_loras, merge_loras, resize_lora
from lora_service.lora.files import read_lora, write_lora
from lora_service.lora.lycoris import DoraLayer, Factor, FullDifference, LohaLayer
from lora_service.lora.scale import Scale, parse_scale
from lora_service.lora.weights import LoraLayer, LoraWeights
from tests.errors import raises
from tests.lora.lora_fakes import TOKEN_NAMES, is_attention, is_convolution, random_lora
from tests.small_models import small_models

MODELS = small_models("sd1").components


def everything(path: str, module: nn.Module) -> bool:
    return is_attention(path, module) or is_convolution(path, module)


def lora(seed: int, **options: object) -> LoraWeights:
    return random_lora(MODELS, seed=seed, targets=everything, **options)


def dense(weights: LoraWeights) -> dict[tuple[str, str], Tensor]:
    return {(component, path): layer.delta(torch.zeros(layer.shape)) for component, path, layer in weights}


def test_a_merged_lora_is_the_exact_sum_at_the_scales(tmp_path: Path) -> None:
    first, second = lora(1, rank=3, alpha=6.0), lora(2, rank=2)
    merged = merge_loras([(first, Scale(0.7, 0.2)), (second, Scale(0.5, -1.0))])
    a, b, total = dense(first), dense(second), dense(merged)
    for (component, path), change in total.items():
        scales = (0.7, 0.5) if component == "unet" else (0.2, -1.0)
        torch.testing.assert_close(change, scales[0] * a[component, path] + scales[1] * b[component, path])
    assert merged.rank == 5
    write_lora(tmp_path / "c.safetensors", merged, dtype=torch.float32)
    for key, change in dense(read_lora(tmp_path / "c.safetensors")).items():
        torch.testing.assert_close(change, total[key])


def test_a_module_of_one_lora_alone_is_in_the_sum() -> None:
    layer = LoraLayer(torch.ones(1, 3), torch.ones(2, 1), 1.0)
    merged = merge_loras(
        [
            (LoraWeights({"unet": {"a": layer}}), Scale(0.5, 1)),
            (LoraWeights({"text_encoder": {"b": layer}}), Scale(1, 2)),
        ]
    )
    assert torch.equal(dense(merged)["unet", "a"], torch.full((2, 3), 0.5))
    assert torch.equal(dense(merged)["text_encoder", "b"], torch.full((2, 3), 2.0))


def test_a_sum_with_another_kind_is_a_full_difference_that_can_be_resized() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(6, 1, generator=generator), torch.randn(1, 4, generator=generator)
    loha = LohaLayer(Factor(b, a), Factor(b, a), 1.0)
    plain = LoraLayer(b, a, 1.0)
    merged = merge_loras([(LoraWeights({"unet": {"x": layer}}), Scale(1, 1)) for layer in (loha, plain)])
    expected = (a @ b) ** 2 + a @ b
    assert isinstance(merged.layers["unet"]["x"], FullDifference)
    torch.testing.assert_close(dense(merged)["unet", "x"], expected)
    resized = resize_lora(merged, rank=2)  # a sum of two products of rank 1
    assert resized.error < 1e-5
    torch.testing.assert_close(dense(resized.weights)["unet", "x"], expected, atol=1e-5, rtol=1e-4)


def test_biases_and_norms_are_added() -> None:
    changes = LoraWeights({"unet": {"norm": FullDifference(torch.ones(3)), "x.bias": FullDifference(torch.ones(2))}})
    merged = merge_loras([(changes, Scale(1, 1)), (changes, Scale(0.5, 1))])
    assert torch.equal(dense(merged)["unet", "norm"], torch.full((3,), 1.5))
    assert resize_lora(merged, rank=1).weights.layers["unet"]["x.bias"] is merged.layers["unet"]["x.bias"]


def test_tokens_of_one_name_stay_two_and_triggers_are_joined() -> None:
    parts = []
    for seed, trigger in ((1, "rex"), (2, "cat")):
        weights = lora(seed, tokens=TOKEN_NAMES)
        strings = {"modelspec.trigger_phrase": trigger, "ss_v2": "False", "lora_service.report": "{}"}
        parts.append((LoraWeights(weights.layers, weights.embeddings, strings), Scale(1, 1)))
    merged = merge_loras(parts)
    assert merged.tokens == ("<s1>", "<s2>", "<lora2:s1>", "<lora2:s2>")
    assert torch.equal(merged.embeddings["<lora2:s1>"]["text_encoder"], parts[1][0].embeddings["<s1>"]["text_encoder"])
    assert merged.trigger == "rex, cat"
    assert merged.metadata["ss_network_dim"] == "8"
    assert "lora_service.report" not in merged.metadata


def test_loras_of_different_bases_are_not_added_or_compared() -> None:
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    parts = [LoraWeights({"unet": {path: LoraLayer(torch.ones(1, n), torch.ones(4, 1), 1.0)}}) for n in (768, 2048)]
    with raises(WrongBaseError):
        merge_loras([(part, Scale(1, 1)) for part in parts])
    with raises(WrongBaseError):
        compare_loras(*parts)


def test_a_change_that_depends_on_the_base_is_neither_added_nor_resized() -> None:
    dora = DoraLayer(LoraLayer(torch.ones(1, 3), torch.ones(2, 1), 1.0), torch.ones(2, 1))
    weights = LoraWeights({"unet": {"x": dora}})
    with raises(LoraFileError, code="unsupported_kind"):
        merge_loras([(weights, Scale(1, 1))])
    with raises(LoraFileError, code="unsupported_kind"):
        resize_lora(weights, rank=1)
    assert compare_loras(weights, weights)["all"].norms is None


def test_a_resized_lora_is_the_nearest_of_its_rank_and_its_error_is_true() -> None:
    """Compare with the singular value decomposition of each dense change."""
    weights = lora(1, rank=6, alpha=3.0)
    resized = resize_lora(weights, rank=2)
    missing, whole = 0.0, 0.0
    for key, change in dense(weights).items():
        u, values, v = torch.linalg.svd(change.flatten(1), full_matrices=False)
        nearest = (u[:, :2] * values[:2]) @ v[:2]
        torch.testing.assert_close(dense(resized.weights)[key].flatten(1), nearest, atol=1e-5, rtol=1e-3)
        missing, whole = missing + (change.flatten(1) - nearest).square().sum(), whole + change.square().sum()
    assert resized.error == pytest.approx((missing / whole).sqrt().item(), rel=1e-4)
    assert {layer.rank for _, _, layer in resized.weights} == {2}


def test_a_share_of_the_energy_takes_the_lowest_rank_that_keeps_it() -> None:
    up, down = torch.eye(6)[:, :4] * torch.tensor([4.0, 2.0, 1.0, 1.0]), torch.eye(5)[:4]
    weights = LoraWeights({"unet": {"x": LoraLayer(down, up, 4.0)}})  # squares 16, 4, 1, 1 of 22
    ranks = {share: resize_lora(weights, energy=share).weights.rank for share in (0.7, 0.75, 0.9, 0.92, 1.0)}
    assert ranks == {0.7: 1, 0.75: 2, 0.9: 2, 0.92: 3, 1.0: 4}


def test_resizing_to_more_changes_nothing() -> None:
    weights = lora(1, rank=2)
    resized = resize_lora(weights, rank=100)
    assert resized.error == 0
    for key, change in dense(weights).items():
        torch.testing.assert_close(dense(resized.weights)[key], change, atol=1e-6, rtol=1e-4)


def test_a_comparison_is_that_of_the_dense_changes() -> None:
    first, second = lora(1, rank=3), lora(2, rank=2, alpha=5.0)
    a, b = (torch.cat([change.flatten() for change in dense(part).values()]) for part in (first, second))
    overall = compare_loras(first, second)["all"]
    assert overall.norms == pytest.approx((a.norm().item(), b.norm().item()), rel=1e-4)
    assert overall.cosine == pytest.approx(torch.cosine_similarity(a, b, dim=0).item(), abs=1e-4)
    assert overall.distance == pytest.approx((a - b).norm().item(), rel=1e-4)
    same = compare_loras(first, first)
    assert all(block.cosine == pytest.approx(1, abs=1e-4) for block in same.values())
    assert list(same)[-1] == "all"
    assert "unet mid_block" in same


@pytest.mark.parametrize(
    ("rank", "energy", "field"),
    [(None, None, "--rank"), (1, 0.5, "--rank"), (0, None, "--rank"), (None, 0.0, "--energy"), (None, 1.1, "--energy")],
)
def test_a_target_is_one_rank_or_one_share(rank: int | None, energy: float | None, field: str) -> None:
    with raises(InputError, field=field):
        check_target(rank, energy)


def test_blocks_have_their_own_scale_in_a_sum() -> None:
    layer = FullDifference(torch.ones(2, 3))
    paths = ("down_blocks.0.a", "down_blocks.1.a", "mid_block.a")
    merged = merge_loras([(LoraWeights({"unet": dict.fromkeys(paths, layer)}), parse_scale("0.5,unet.down.1:2"))])
    assert [dense(merged)["unet", path][0, 0].item() for path in paths] == [0.5, 2, 0.5]


@pytest.mark.parametrize("scale", ["unet.up:1", "steps:0-0.5"])
def test_blocks_and_steps_that_a_sum_cannot_have_are_refused(scale: str) -> None:
    weights = LoraWeights({"unet": {"mid_block.a": FullDifference(torch.ones(2, 3))}})
    with raises(InputError, field="lora_scales"):
        merge_loras([(weights, parse_scale(scale))])
