"""LoRAs for transformers are written and read back the same, split and joined exactly, and refused by another base."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from lora_service.errors import LoraFileError, WrongBaseError
from lora_service.lora.arithmetic import compare_loras, merge_loras, resize_lora
from lora_service.lora.base_detection import can_be_for, detect_lora_base, likelier_base
from lora_service.lora.files import read_lora, write_lora
from lora_service.lora.lycoris import Factor, FullDifference, LohaLayer, LokrLayer
from lora_service.lora.patcher import Patcher
from lora_service.lora.scale import parse_scale
from lora_service.lora.summary import as_text, summarize
from lora_service.lora.weights import LoraLayer, LoraWeights, WeightChange
from tests.errors import raises
from tests.lora.flow_fakes import NAMES, full_size_transformer, small_transformer
from tests.lora.lora_fakes import assert_same_changes, random_lora, save
from tests.small_models import small_models

QKV = "diffusion_model.double_blocks.0.img_attn.qkv"
PATHS = [f"transformer_blocks.0.attn.{layer}" for layer in ("to_q", "to_k", "to_v")]


def linear(path: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


def lora_of(name: str, **options: object) -> LoraWeights:
    return random_lora({"transformer": small_transformer(name)}, targets=linear, **options)  # type: ignore[arg-type]


def deltas(lora: LoraWeights) -> dict[str, Tensor]:
    return {path: change.delta(torch.zeros(change.shape)) for path, change in lora.layers["transformer"].items()}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lora_format", ["kohya", "comfyui", "diffusers"])
def test_a_lora_is_written_and_read_back(name: str, lora_format: str, tmp_path: Path) -> None:
    lora = lora_of(name, alpha=2.0)
    write_lora(tmp_path / "lora.safetensors", lora, format=lora_format, dtype=torch.float32)
    reread = read_lora(tmp_path / "lora.safetensors")
    assert reread.format == ("comfyui" if lora_format == "kohya" else lora_format)
    assert_same_changes(lora, reread, atol=0, rtol=1e-6)
    start = "transformer." if lora_format == "diffusers" else "diffusion_model."
    assert all(key.startswith(start) for key in load_file(tmp_path / "lora.safetensors"))


@pytest.mark.parametrize(
    ("name", "key"),
    {
        "flux2-klein": "diffusion_model.single_blocks.0.linear1.lora_A.weight",
        "zimage": "diffusion_model.layers.0.attention.to_q.lora_A.weight",
        "flux1": "diffusion_model.single_blocks.0.linear1.lora_down.weight",
        "krea2": "diffusion_model.blocks.0.attn.wq.lora_A.weight",
        "qwen-image": "diffusion_model.transformer_blocks.0.attn.to_q.lora_A.weight",
        "sd3": "diffusion_model.joint_blocks.0.x_block.attn.qkv.lora_down.weight",
    }.items(),
)
def test_comfyui_finds_the_names_that_it_knows(name: str, key: str, tmp_path: Path) -> None:
    metadata = {"modelspec.architecture": f"{name.replace('flux1', 'flux-1-dev')}/lora"}
    lora = lora_of(name)
    write_lora(tmp_path / "lora.safetensors", LoraWeights(lora.layers, metadata=metadata))
    with safe_open(tmp_path / "lora.safetensors", "pt") as file:
        assert key in set(file.keys())


def test_a_fused_file_is_written_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(0)
    blocks = ("double_blocks.0.img_attn.qkv", 3), ("single_blocks.1.linear1", 7), ("double_blocks.0.img_mod.lin", 6)
    tensors = {}
    for name, rows in blocks:
        tensors |= {f"diffusion_model.{name}.lora_down.weight": torch.randn(4, 16)}
        tensors |= {f"diffusion_model.{name}.lora_up.weight": torch.randn(rows * 16, 4)}
        tensors |= {f"diffusion_model.{name}.alpha": torch.tensor(3.0)}
    lora = read_lora(save(tmp_path / "lora.safetensors", tensors))
    assert len(lora.layers["transformer"]) == 3 + 4 + 1
    write_lora(tmp_path / "again.safetensors", lora, dtype=torch.float32)
    again = load_file(tmp_path / "again.safetensors")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in tensors.items())


def test_split_projections_are_joined_block_by_block_and_split_again(tmp_path: Path) -> None:
    layers = {path: LoraLayer(torch.randn(rank, 16), torch.randn(16, rank), 2.0 * rank)
              for path, rank in zip(PATHS, (2, 3, 1), strict=True)}  # fmt: skip
    gated = {"single_transformer_blocks.0.attn.to_qkv_mlp_proj": LoraLayer(torch.randn(2, 16), torch.randn(144, 2), 2)}
    lora = LoraWeights({"transformer": {**layers, **gated}})
    write_lora(tmp_path / "lora.safetensors", lora, dtype=torch.float32)
    assert load_file(tmp_path / "lora.safetensors")[f"{QKV}.lora_B.weight"].shape == (48, 6)
    reread = read_lora(tmp_path / "lora.safetensors").layers["transformer"]
    assert [reread[path].rank for path in PATHS] == [2, 3, 1]
    without_k = LoraWeights({"transformer": {**{path: layers[path] for path in PATHS if path != PATHS[1]}, **gated}})
    write_lora(tmp_path / "lora.safetensors", without_k, dtype=torch.float32)
    assert_same_changes(without_k, read_lora(tmp_path / "lora.safetensors"), atol=0, rtol=1e-6)


def loha(columns: int = 16) -> LohaLayer:
    return LohaLayer(*(Factor(torch.randn(2, columns), torch.randn(48, 2)) for _ in range(2)), alpha=1.0)


def lokr(rows: int, second: tuple[int, int]) -> LokrLayer:
    return LokrLayer(
        Factor(torch.randn(rows, 4)), Factor(torch.randn(second[1], 4), torch.randn(second[0], second[1])), 1.0
    )


FUSED: Mapping[str, Callable[[], WeightChange]] = {
    "LoHa": loha,
    "LoKr, whose parts are whole blocks": lambda: lokr(12, (4, 2)),
    "LoKr, whose parts end within blocks": lambda: lokr(2, (24, 2)),
    "a full difference": lambda: FullDifference(torch.randn(48, 16)),
}


@pytest.mark.parametrize("kind", FUSED)
def test_other_kinds_of_fused_changes_are_split_exactly_and_written_as_they_were(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    change = FUSED[kind]()
    tensors = {f"{QKV}.{suffix}": tensor for suffix, tensor in change.tensors.items()}
    if change.rank:
        tensors[f"{QKV}.alpha"] = torch.tensor(change.alpha)
    lora = read_lora(save(tmp_path / "lora.safetensors", tensors))
    parts = deltas(lora)
    assert list(parts) == PATHS
    torch.testing.assert_close(torch.cat(list(parts.values())), change.delta(torch.zeros(48, 16)))
    norms = torch.tensor([each.norm() for _, _, each in lora])
    torch.testing.assert_close(norms, torch.stack([part.norm() for part in parts.values()]))
    write_lora(tmp_path / "again.safetensors", lora, dtype=torch.float32)
    again = load_file(tmp_path / "again.safetensors")
    assert {key: tensor.shape for key, tensor in again.items()} == {key: t.shape for key, t in tensors.items()}
    assert all(torch.equal(again[key], tensor) for key, tensor in tensors.items())


def test_split_products_are_written_under_paths_that_comfyui_reads(tmp_path: Path) -> None:
    layers: dict[str, WeightChange] = {path: LokrLayer(Factor(torch.randn(4, 4)), Factor(torch.randn(4, 4)), 0.0)
                                       for path in PATHS}  # fmt: skip
    lora = LoraWeights({"transformer": layers})
    write_lora(tmp_path / "lora.safetensors", lora, dtype=torch.float32)
    assert f"transformer.{PATHS[0]}.lokr_w1" in load_file(tmp_path / "lora.safetensors")
    assert_same_changes(lora, read_lora(tmp_path / "lora.safetensors"))


@pytest.mark.parametrize("suffix", ["dora_scale", "magnitude", "lora_magnitude_vector.weight"])
def test_a_fused_dora_changes_the_weights_as_one_of_the_whole_would(suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    down, up, magnitude = torch.randn(2, 16), torch.randn(48, 2), torch.rand(48) + 1
    tensors = {f"{QKV}.lora_A.weight": down, f"{QKV}.lora_B.weight": up}
    tensors[f"{QKV}.{suffix}"] = magnitude[:, None] if suffix == "dora_scale" else magnitude
    lora = read_lora(save(tmp_path / "lora.safetensors", tensors))
    weight = torch.randn(48, 16)
    changed = weight + up @ down
    expected = magnitude[:, None] * changed / changed.norm(dim=1, keepdim=True)
    parts = [
        part + lora.layers["transformer"][path].delta(part) for path, part in zip(PATHS, weight.chunk(3), strict=True)
    ]
    torch.testing.assert_close(torch.cat(parts), expected)
    write_lora(tmp_path / "again.safetensors", lora, dtype=torch.float32)
    assert torch.equal(load_file(tmp_path / "again.safetensors")[f"{QKV}.dora_scale"].flatten(), magnitude)


def test_magnitudes_of_whole_inputs_of_a_fused_projection_are_refused(tmp_path: Path) -> None:
    tensors = {f"{QKV}.lora_down.weight": torch.ones(2, 16), f"{QKV}.lora_up.weight": torch.ones(48, 2)}
    with raises(LoraFileError, code="unsupported_kind"):
        read_lora(save(tmp_path / "lora.safetensors", {**tensors, f"{QKV}.dora_scale": torch.ones(1, 16)}))


def test_a_fused_projection_of_other_proportions_is_refused(tmp_path: Path) -> None:
    tensors = {f"{QKV}.lora_down.weight": torch.ones(2, 16), f"{QKV}.lora_up.weight": torch.ones(50, 2)}
    with raises(LoraFileError, code="shape_mismatch"):
        read_lora(save(tmp_path / "lora.safetensors", tensors))


def test_biases_of_fused_projections_are_split(tmp_path: Path) -> None:
    tensors = {f"{QKV}.diff": torch.ones(48, 16), f"{QKV}.diff_b": torch.arange(48.0)}
    lora = read_lora(save(tmp_path / "lora.safetensors", tensors))
    assert torch.equal(deltas(lora)[f"{PATHS[1]}.bias"], torch.arange(16.0, 32.0))
    write_lora(tmp_path / "again.safetensors", lora, dtype=torch.float32)
    assert torch.equal(load_file(tmp_path / "again.safetensors")[f"{QKV}.diff_b"], tensors[f"{QKV}.diff_b"])


def test_a_module_under_both_names_is_read_once(tmp_path: Path) -> None:
    """Compare with diffusers, which skips the fused copy that some trainers of Z-Image write."""
    tensors = {}
    for layer, rows in (("qkv", 48), ("to_q", 16), ("to_k", 16), ("to_v", 16)):
        module = f"lora_unet_layers.0.attention.{layer}"
        tensors |= {f"{module}.lora.down.weight": torch.ones(2, 16), f"{module}.lora.up.weight": torch.ones(rows, 2)}
    lora = read_lora(save(tmp_path / "lora.safetensors", tensors))
    assert set(lora.layers["transformer"]) == {f"layers.0.attention.to_{layer}" for layer in "qkv"}
    assert len(lora.warnings) == 1
    del tensors["lora_unet_layers.0.attention.to_v.lora.down.weight"]
    del tensors["lora_unet_layers.0.attention.to_v.lora.up.weight"]
    with raises(LoraFileError, code="duplicate_tensor"):
        read_lora(save(tmp_path / "lora.safetensors", tensors))


def test_encoders_beside_a_transformer_are_read_or_named(tmp_path: Path) -> None:
    tensors = {}
    for module in (
        "lora_unet_double_blocks_0_img_attn_proj",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1",
        "lora_te2_encoder_block_0_layer_0_SelfAttention_k",
    ):
        tensors |= {f"{module}.lora_down.weight": torch.ones(2, 16), f"{module}.lora_up.weight": torch.ones(16, 2)}
    lora = read_lora(save(tmp_path / "lora.safetensors", tensors))
    assert lora.layers["text_encoder"].keys() == {"encoder.layers.0.mlp.fc1"}
    assert "2 tensors" in lora.warnings[0]


def test_an_unknown_module_of_a_known_family_is_refused(tmp_path: Path) -> None:
    tensors = {f"diffusion_model.layers.0.attention.{layer}.lora_A.weight": torch.ones(2, 16) for layer in ("out", "x")}
    tensors |= {key.replace("lora_A", "lora_B"): torch.ones(16, 2) for key in tensors}
    with raises(LoraFileError, code="unknown_key") as caught:
        read_lora(save(tmp_path / "lora.safetensors", tensors))
    assert "Z-Image" in str(caught.value)


SIZES = {
    "FLUX.2 klein 4B": (3072, 5),
    "FLUX.2 klein 9B": (4096, 8),
    "FLUX.1": (3072, 19),
    "Qwen-Image": (3072, 60),
    "Stable Diffusion 3.5 Large": (2432, 38),
}


@pytest.mark.parametrize("title", SIZES)
def test_names_that_several_families_share_are_told_apart_by_sizes(title: str) -> None:
    width, blocks = SIZES[title]
    layer = LoraLayer(torch.zeros(1, width), torch.zeros(width, 1), 1.0)
    paths = (f"transformer_blocks.{number}.attn.to_q" for number in range(blocks))
    assert detect_lora_base(LoraWeights({"transformer": dict.fromkeys(paths, layer)})) == title


def test_the_header_tells_apart_what_sizes_do_not() -> None:
    layer = LoraLayer(torch.zeros(1, 3072), torch.zeros(3072, 1), 1.0)
    layers = {"transformer": {f"transformer_blocks.{number}.attn.to_q": layer for number in range(19)}}
    assert detect_lora_base(LoraWeights(layers, metadata={"modelspec.architecture": "chroma/lora"})) == "Chroma"
    assert detect_lora_base(LoraWeights(layers, metadata={"ss_base_model_version": "flux1"})) == "FLUX.1"
    assert detect_lora_base(LoraWeights(layers, metadata={"modelspec.architecture": "Flux.1-dev/lora"})) == "FLUX.1"


@pytest.mark.parametrize(
    ("made_for", "base", "titles"),
    [
        ("zimage", "flux2-klein", ("Z-Image", "FLUX.2")),
        ("flux2-klein", "flux1", ("FLUX.2", "FLUX.1")),
        ("flux1", "flux2-klein", ("FLUX.1", "FLUX.2")),
        ("flux1", "chroma", ("FLUX.1", "Chroma")),
        ("qwen-image", "krea2", ("Qwen-Image", "Krea 2")),
        ("krea2", "sd3", ("Krea 2", "Stable Diffusion 3")),
    ],
)
def test_a_lora_for_another_family_is_an_error_that_names_both(
    made_for: str, base: str, titles: tuple[str, str]
) -> None:
    patcher = Patcher({"transformer": small_transformer(base)}, {})
    with raises(WrongBaseError) as caught:
        patcher.apply([(lora_of(made_for), parse_scale("1"))])
    assert all(title in str(caught.value) for title in titles)


def test_a_lora_of_more_blocks_than_the_base_has_is_refused() -> None:
    layer = LoraLayer(torch.zeros(1, 3072), torch.zeros(3072, 1), 1.0)
    layers = {"transformer": {f"transformer_blocks.{number}.attn.to_q": layer for number in range(60)}}
    patcher = Patcher({"transformer": full_size_transformer("flux1")}, {})
    with raises(WrongBaseError) as caught:
        patcher.apply([(LoraWeights(layers), parse_scale("1"))])
    assert "FLUX.1" in str(caught.value)
    assert "Qwen-Image" in str(caught.value)


@pytest.mark.parametrize(
    ("module", "parts"), [("double_blocks.{}.img_attn.qkv", 3), ("transformer_blocks.{}.attn.to_q", 1)]
)
def test_a_lora_of_a_few_blocks_follows_the_base_where_nothing_tells_families_apart(
    module: str, parts: int, tmp_path: Path
) -> None:
    """FLUX.1's first five blocks have the names and widths of klein's five."""
    tensors = {}
    for number in range(5):
        tensors[f"diffusion_model.{module.format(number)}.lora_A.weight"] = torch.zeros(1, 3072)
        tensors[f"diffusion_model.{module.format(number)}.lora_B.weight"] = torch.zeros(parts * 3072, 1)
    lora = read_lora(save(tmp_path / "lora.safetensors", tensors))
    reports = {
        base: Patcher({"transformer": full_size_transformer(base)}, {}).apply([(lora, parse_scale("0/0"))])
        for base in ("flux1", "flux2-klein")
    }
    assert all(report.matched == {"transformer": 5 * parts} for report in reports.values())
    assert likelier_base(lora, "FLUX.1") == "FLUX.2 klein 4B"
    assert likelier_base(lora, "FLUX.2 klein 4B") is None
    assert not can_be_for(lora, "Krea 2")


def test_what_has_another_shape_in_klein_is_flux1s(tmp_path: Path) -> None:
    name = "diffusion_model.double_blocks.{}.img_mlp.0.lora_{}.weight"
    tensors = {name.format(number, "A"): torch.zeros(1, 3072) for number in range(5)}
    tensors |= {name.format(number, "B"): torch.zeros(12288, 1) for number in range(5)}
    lora = read_lora(save(tmp_path / "lora.safetensors", tensors))
    assert detect_lora_base(lora) == "FLUX.1"
    assert not can_be_for(lora, "FLUX.2 klein 4B")


def test_a_likelier_base_is_in_the_report() -> None:
    shared = {"transformer": {"transformer_blocks.0.attn.to_q": LoraLayer(torch.zeros(1, 16), torch.zeros(16, 1), 1.0)}}
    patcher = Patcher({"transformer": small_transformer("flux1")}, {})
    warning = patcher.apply([(LoraWeights(shared), parse_scale("1"))]).warning
    assert warning is not None
    assert "FLUX.2" in warning


def test_unets_and_transformers_refuse_each_others_loras() -> None:
    models = small_models("sdxl")
    unet = Patcher(models.components, models.tokenizers)
    transformer = Patcher({"transformer": small_transformer("zimage")}, {})
    of_unet = random_lora(models.components)
    for patcher, lora in ((unet, lora_of("zimage")), (transformer, of_unet)):
        with raises(WrongBaseError) as caught:
            patcher.apply([(lora, parse_scale("1"))])
        assert "Z-Image" in str(caught.value)


def test_a_lora_of_names_that_flux1_and_chroma_share_is_for_both() -> None:
    lora = lora_of("chroma", seed=1)
    shared = {path: change for path, change in lora.layers["transformer"].items() if "blocks" in path}
    for base in ("flux1", "chroma"):
        patcher = Patcher({"transformer": small_transformer(base)}, {})
        assert patcher.apply([(LoraWeights({"transformer": shared}), parse_scale("1"))]).unmatched == ()


def test_scales_of_blocks_and_steps_reach_a_transformer() -> None:
    model = small_transformer("zimage")
    before = {path: module.weight.clone() for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    patcher = Patcher({"transformer": model}, {})
    patcher.apply([(lora_of("zimage"), parse_scale("0,transformer.layers.1:0.5,steps:0-0.5"))])

    def changed() -> set[str]:
        weights = {path: module.weight for path, module in model.named_modules() if path in before}
        return {
            ".".join(path.split(".")[:2]) for path, weight in weights.items() if not torch.equal(weight, before[path])
        }

    assert changed() == {"layers.1"}
    patcher.move_to(0.6)
    assert changed() == set()


def test_sums_lower_ranks_comparisons_and_summaries_work_for_transformers(tmp_path: Path) -> None:
    first, second = lora_of("flux2-klein", seed=1), lora_of("flux2-klein", seed=2)
    merged = merge_loras([(first, parse_scale("0.5")), (second, parse_scale("1"))])
    write_lora(tmp_path / "merged.safetensors", merged, dtype=torch.float32)
    both, expected = deltas(read_lora(tmp_path / "merged.safetensors")), deltas(second)
    for path, delta in deltas(first).items():
        torch.testing.assert_close(both[path], expected[path] + 0.5 * delta, atol=1e-5, rtol=1e-5)
    assert resize_lora(merged, rank=2).weights.rank == 2
    assert compare_loras(first, first)["transformer transformer_blocks.0"].cosine == pytest.approx(1)
    summary = summarize(merged)
    assert summary.base == "FLUX.2"
    assert summary.modules == {"transformer": len(merged.layers["transformer"])}
    assert next(iter(summary.change)) == "transformer transformer_blocks.0"
    assert "single_transformer_blocks.1" in as_text(summary)
    with raises(WrongBaseError):
        merge_loras([(first, parse_scale("1")), (lora_of("zimage"), parse_scale("1"))])


@pytest.mark.parametrize("lora_format", ["cloneofsimo", "embedding"])
def test_formats_without_transformers_refuse_them(lora_format: str, tmp_path: Path) -> None:
    with pytest.raises(LoraFileError):
        write_lora(tmp_path / "lora.safetensors", lora_of("zimage"), format=lora_format)
    assert list(tmp_path.iterdir()) == []
