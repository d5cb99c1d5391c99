"""Every layout in circulation is read as what it means, and what is written is read back the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lora_service.errors import InputError, LoraFileError
from lora_service.lora.formats.cloneofsimo import NEW_ORDER, OLD_ORDER, standard_order
from lora_service.lora.reader import read_lora
from lora_service.lora.weights import LoraLayer, LoraWeights
from lora_service.lora.writer import write_lora
from tests.lora.lora_fakes import (
    TOKEN_NAMES,
    assert_same_changes,
    is_attention,
    is_cloneofsimo_target,
    is_convolution,
    random_lora,
    save,
)
from tests.small_models import FAMILIES, small_models

GOLDEN = Path(__file__).resolve().parents[2] / "../shared/data/golden"
UNET_PATH = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT_PATH = "encoder.layers.0.self_attn.q_proj"
UNET_KEY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
DOWN, UP = torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
PRODUCT = UP @ DOWN


def everything(path: str, module: nn.Module) -> bool:
    return is_attention(path, module) or is_convolution(path, module)


def delta(weights: LoraWeights, component: str, path: str) -> Tensor:
    layer = weights.layers[component][path]
    return layer.delta(torch.zeros(layer.shape))


def only_module(weights: LoraWeights) -> tuple[str, str, Tensor]:
    ((component, path, layer),) = weights
    return component, path, layer.delta(torch.zeros(layer.shape))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
@pytest.mark.parametrize("wanted", [is_attention, everything])
def test_a_lora_of_any_base_is_written_and_read_back(family: str, layout: str, wanted, tmp_path: Path) -> None:
    lora = random_lora(small_models(family).components, alpha=2.0, wanted=wanted, tokens=TOKEN_NAMES)
    write_lora(tmp_path / "lora.safetensors", lora, layout=layout)
    found = read_lora(tmp_path / "lora.safetensors")
    assert found.layout == layout
    assert_same_changes(lora, found)


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_a_lora_of_a_small_base_is_written_and_read_back_in_the_numbered_layout(family: str, tmp_path: Path) -> None:
    lora = random_lora(small_models(family).components, alpha=2.0, wanted=is_cloneofsimo_target, tokens=TOKEN_NAMES)
    write_lora(tmp_path / "lora.safetensors", lora, layout="cloneofsimo")
    found = read_lora(tmp_path / "lora.safetensors")
    assert found.layout == "cloneofsimo"
    assert_same_changes(lora, found)


def numbered(orders: list[str], shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """A cloneofsimo file of rank 1 whose factors hold the module's number."""
    tensors = {}
    for number, path in enumerate(orders):
        out, inside, *kernel = shapes[path]
        tensors[f"unet:{number}:down"] = torch.full((1, inside, *kernel), 1.0)
        tensors[f"unet:{number}:up"] = torch.full((out, 1, *[1] * len(kernel)), float(number))
    return tensors


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the original's module order is not beside the repository")
@pytest.mark.parametrize("order", ["unet", "unet_modern_diffusers", "unet_extended", "unet_extended_modern_diffusers"])
def test_both_dialects_of_the_numbered_layout_are_told_apart_by_shape(order: str, tmp_path: Path) -> None:
    known = json.loads((GOLDEN / "cloneofsimo_order.json").read_text())
    old = known["unet_extended" if "extended" in order else "unet"]
    by_number = known["shapes_out_in"]["unet_extended" if "extended" in order else "unet"]
    shapes = {path: by_number[number] for number, path in old.items()}
    paths = [known[order][str(number)] for number in range(len(known[order]))]
    found = read_lora(save(tmp_path / "lora.safetensors", numbered(paths, shapes)))
    assert {path: layer.up.flatten()[0].item() for path, layer in found.layers["unet"].items()} == {
        path: float(number) for number, path in enumerate(paths)
    }


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the original's module order is not beside the repository")
def test_the_text_encoder_of_the_numbered_layout_counts_key_value_query_output(tmp_path: Path) -> None:
    known = json.loads((GOLDEN / "cloneofsimo_order.json").read_text())["text_encoder"]
    tensors = {}
    for number in range(len(known)):
        tensors[f"text_encoder:{number}:down"] = torch.ones(1, 4)
        tensors[f"text_encoder:{number}:up"] = torch.full((4, 1), float(number))
    found = read_lora(save(tmp_path / "lora.safetensors", tensors))
    assert {f"text_model.{path}": layer.up[0, 0].item() for path, layer in found.layers["text_encoder"].items()} == {
        path: float(number) for number, path in known.items()
    }


def test_the_numbered_layout_in_neither_order_is_refused(tmp_path: Path) -> None:
    tensors = {
        f"unet:{number}:{part}": torch.ones(4, 1) if part == "up" else torch.ones(1, 4)
        for number in range(144)
        for part in ("up", "down")
    }
    with pytest.raises(LoraFileError, match="neither order"):
        read_lora(save(tmp_path / "lora.safetensors", tensors))


@pytest.mark.parametrize(("numbers", "message"), [(range(7), "7 numbered"), ([0, 2], "not numbered")])
def test_numbers_that_mean_nothing_are_refused(numbers, message: str, tmp_path: Path) -> None:
    tensors = {f"unet:{number}:{part}": torch.ones(2, 2) for number in numbers for part in ("up", "down")}
    with pytest.raises(LoraFileError, match=message):
        read_lora(save(tmp_path / "lora.safetensors", tensors))


def test_the_numbered_layout_cannot_leave_a_module_of_a_known_base_out(tmp_path: Path) -> None:
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    lora = LoraWeights({"unet": {path: LoraLayer(torch.ones(1, 768), torch.ones(320, 1), 1.0)}})
    with pytest.raises(LoraFileError, match="cannot leave one out"):
        write_lora(tmp_path / "lora.safetensors", lora, layout="cloneofsimo")


def test_a_module_without_a_number_cannot_be_written_numbered(tmp_path: Path) -> None:
    lora = LoraWeights({"unet": {"conv_in": LoraLayer(torch.ones(1, 4, 3, 3), torch.ones(8, 1, 1, 1), 1.0)}})
    with pytest.raises(LoraFileError, match=r"unet\.conv_in has no number"):
        write_lora(tmp_path / "lora.safetensors", lora, layout="cloneofsimo")


def test_a_second_text_encoder_cannot_be_written_numbered(tmp_path: Path) -> None:
    lora = random_lora(small_models("sdxl").components, wanted=is_cloneofsimo_target)
    with pytest.raises(LoraFileError, match="no second text encoder"):
        write_lora(tmp_path / "lora.safetensors", lora, layout="cloneofsimo")


def test_every_order_of_the_numbered_layout_has_each_module_once() -> None:
    for extended, count in ((False, 144), (True, 224)):
        orders = [list(standard_order(order, extended)) for order in (OLD_ORDER, NEW_ORDER)]
        assert [len(set(order)) for order in orders] == [count, count]
        assert set(orders[0]) == set(orders[1])


UNET_SPELLINGS = {
    "kohya": (f"{UNET_KEY}.lora_down.weight", f"{UNET_KEY}.lora_up.weight"),
    "PEFT": (f"unet.{UNET_PATH}.lora_A.weight", f"unet.{UNET_PATH}.lora_B.weight"),
    "PEFT with an adapter's name": (
        f"unet.{UNET_PATH}.lora_A.default.weight",
        f"unet.{UNET_PATH}.lora_B.default.weight",
    ),
    "PEFT of one model": (f"base_model.model.{UNET_PATH}.lora_A.weight", f"base_model.model.{UNET_PATH}.lora_B.weight"),
    "training script": (f"unet.{UNET_PATH}.lora.down.weight", f"unet.{UNET_PATH}.lora.up.weight"),
    "attention processor": (
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight",
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.up.weight",
    ),
    "attention processor without a prefix": (
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.up.weight",
    ),
}
TEXT_SPELLINGS = {
    "kohya": "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_{kohya}.weight",
    "kohya as in SDXL": "lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_{kohya}.weight",
    "kohya without text_model": "lora_te_encoder_layers_0_self_attn_q_proj.lora_{kohya}.weight",
    "PEFT": "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_{peft}.weight",
    "PEFT without text_model": "text_encoder.encoder.layers.0.self_attn.q_proj.lora_{peft}.weight",
    "training script": "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.{kohya}.weight",
    "old training script": "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.{kohya}.weight",
    "one model": "text_model.encoder.layers.0.self_attn.q_proj.lora_{peft}.weight",
}


@pytest.mark.parametrize("spelling", UNET_SPELLINGS)
def test_a_unet_module_is_found_under_each_spelling(spelling: str, tmp_path: Path) -> None:
    down, up = UNET_SPELLINGS[spelling]
    component, path, change = only_module(read_lora(save(tmp_path / "lora.safetensors", {down: DOWN, up: UP})))
    assert (component, path) == ("unet", UNET_PATH)
    assert torch.equal(change, PRODUCT)


@pytest.mark.parametrize("spelling", TEXT_SPELLINGS)
def test_a_text_encoder_module_is_found_under_each_spelling(spelling: str, tmp_path: Path) -> None:
    down, up = (TEXT_SPELLINGS[spelling].format(kohya=k, peft=p) for k, p in (("down", "A"), ("up", "B")))
    component, path, change = only_module(read_lora(save(tmp_path / "lora.safetensors", {down: DOWN, up: UP})))
    assert (component, path) == ("text_encoder", TEXT_PATH)
    assert torch.equal(change, PRODUCT)


def test_the_output_projection_of_an_attention_processor_is_a_list_of_layers(tmp_path: Path) -> None:
    key = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_out_lora"
    found = read_lora(save(tmp_path / "lora.safetensors", {f"{key}.down.weight": DOWN, f"{key}.up.weight": UP}))
    assert only_module(found)[1] == "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"


@pytest.mark.parametrize(
    ("alpha", "factor"),
    [(None, 1.0), (torch.tensor(1.0), 0.5), (torch.tensor([4.0]), 2.0), (torch.tensor(1, dtype=torch.int64), 0.5)],
)
def test_alpha_may_be_missing_a_scalar_a_list_or_a_whole_number(alpha, factor: float, tmp_path: Path) -> None:
    tensors = {f"{UNET_KEY}.lora_down.weight": DOWN, f"{UNET_KEY}.lora_up.weight": UP}
    if alpha is not None:
        tensors[f"{UNET_KEY}.alpha"] = alpha
    assert torch.equal(only_module(read_lora(save(tmp_path / "lora.safetensors", tensors)))[2], PRODUCT * factor)


@pytest.mark.parametrize(
    ("config", "factor"),
    [
        ({"unet.r": 2, "unet.lora_alpha": 4}, 2.0),
        ({"unet.lora_alpha": 4, "unet.alpha_pattern": {"attn1.to_q": 1}}, 0.5),
        ({"unet.lora_alpha": 4, "unet.alpha_pattern": {"attn2.to_q": 1}}, 2.0),
        ({"unet.lora_alpha": 4, "unet.alpha_pattern": {UNET_PATH: 1}}, 0.5),
        (
            {
                "unet.lora_alpha": 4,
                "unet.alpha_pattern": {r"^down_blocks\.0\.attentions.0.transformer_blocks.0.attn1.to_q$": 1},
            },
            0.5,
        ),
        ({"unet.lora_alpha": 4, "unet.use_rslora": True}, 4 / 2**0.5),
        ({"text_encoder.lora_alpha": 4}, 1.0),
    ],
)
def test_alpha_comes_from_the_adapters_configuration(config: dict, factor: float, tmp_path: Path) -> None:
    tensors = {f"unet.{UNET_PATH}.lora_A.weight": DOWN, f"unet.{UNET_PATH}.lora_B.weight": UP}
    path = save(tmp_path / "lora.safetensors", tensors, {"lora_adapter_metadata": json.dumps(config)})
    torch.testing.assert_close(only_module(read_lora(path))[2], PRODUCT * factor)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"unet.lora_alpha": "many"}', '{"unet.alpha_pattern": {"(a+)+b": 1}}', '{"unet.alpha_pattern": 3}'],
)
def test_a_configuration_that_says_nothing_is_refused(text: str, tmp_path: Path) -> None:
    tensors = {f"unet.{UNET_PATH}.lora_A.weight": DOWN, f"unet.{UNET_PATH}.lora_B.weight": UP}
    with pytest.raises(LoraFileError, match="lora_adapter_metadata"):
        read_lora(save(tmp_path / "lora.safetensors", tensors, {"lora_adapter_metadata": text}))


ORIGINAL_NAMES = {
    "input_blocks_0_0": "conv_in",
    "input_blocks_1_0_in_layers_2": "down_blocks.0.resnets.0.conv1",
    "input_blocks_2_0_out_layers_3": "down_blocks.0.resnets.1.conv2",
    "input_blocks_3_0_op": "down_blocks.0.downsamplers.0.conv",
    "input_blocks_4_1_transformer_blocks_0_attn1_to_q": "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "input_blocks_4_0_skip_connection": "down_blocks.1.resnets.0.conv_shortcut",
    "input_blocks_8_1_transformer_blocks_9_norm1": "down_blocks.2.attentions.1.transformer_blocks.9.norm1",
    "input_blocks_5_1_proj_in": "down_blocks.1.attentions.1.proj_in",
    "middle_block_0_emb_layers_1": "mid_block.resnets.0.time_emb_proj",
    "middle_block_1_transformer_blocks_3_attn2_to_out_0": "mid_block.attentions.0.transformer_blocks.3.attn2.to_out.0",
    "middle_block_2_in_layers_2": "mid_block.resnets.1.conv1",
    "output_blocks_0_1_proj_out": "up_blocks.0.attentions.0.proj_out",
    "output_blocks_2_2_conv": "up_blocks.0.upsamplers.0.conv",
    "output_blocks_5_1_transformer_blocks_1_attn2_to_k": "up_blocks.1.attentions.2.transformer_blocks.1.attn2.to_k",
    "output_blocks_8_0_skip_connection": "up_blocks.2.resnets.2.conv_shortcut",
    "time_embed_0": "time_embedding.linear_1",
    "label_emb_0_2": "add_embedding.linear_2",
    "out_2": "conv_out",
}


@pytest.mark.parametrize("original", ORIGINAL_NAMES)
def test_the_original_models_block_names_are_read(original: str, tmp_path: Path) -> None:
    key = f"lora_unet_{original}"
    found = read_lora(
        save(tmp_path / "lora.safetensors", {f"{key}.lora_down.weight": DOWN, f"{key}.lora_up.weight": UP})
    )
    assert only_module(found)[1] == ORIGINAL_NAMES[original]


def test_an_sdxl_lora_is_written_in_the_original_models_block_names(tmp_path: Path) -> None:
    from safetensors import safe_open

    write_lora(tmp_path / "lora.safetensors", random_lora(small_models("sdxl").components))
    with safe_open(tmp_path / "lora.safetensors", "pt") as file:
        keys = set(file.keys())
    assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight" in keys
    assert "lora_te1_text_model_encoder_layers_0_self_attn_q_proj.alpha" in keys
    assert "lora_te2_text_model_encoder_layers_1_self_attn_q_proj.alpha" in keys
    assert not any("down_blocks" in key for key in keys)


def test_a_convolution_split_once_more_is_multiplied_out_where_it_must_be(tmp_path: Path) -> None:
    """Reference: peft's formula for a Tucker core in the middle, written out as sums."""
    generator = torch.Generator().manual_seed(0)
    down, mid, up = (torch.randn(shape, generator=generator) for shape in ((2, 3, 1, 1), (2, 2, 3, 3), (4, 2, 1, 1)))
    key = "lora_unet_conv_in"
    tensors = {f"{key}.lora_{name}.weight": tensor for name, tensor in (("down", down), ("mid", mid), ("up", up))}
    found = read_lora(save(tmp_path / "lora.safetensors", tensors))
    wanted = torch.zeros(4, 3, 3, 3)
    for out in range(4):
        for inside in range(3):
            for row in range(2):
                for column in range(2):
                    wanted[out, inside] += up[out, row, 0, 0] * mid[row, column] * down[column, inside, 0, 0]
    torch.testing.assert_close(only_module(found)[2], wanted)
    for layout in ("kohya", "diffusers"):
        write_lora(tmp_path / "again.safetensors", found, layout=layout, dtype=torch.float32)
        torch.testing.assert_close(only_module(read_lora(tmp_path / "again.safetensors"))[2], wanted)


BUNDLES = {
    "bundle_emb.word.string_to_param.*": "text_encoder",
    "bundle_emb.word.emb_params": "text_encoder",
    "bundle_emb.word.clip_l": "text_encoder",
    "bundle_emb.word.clip_g": "text_encoder_2",
}


@pytest.mark.parametrize("key", BUNDLES)
def test_bundled_embeddings_are_read_a_row_a_token(key: str, tmp_path: Path) -> None:
    rows = torch.arange(6.0).reshape(2, 3)
    tensors = {f"{UNET_KEY}.lora_down.weight": DOWN, f"{UNET_KEY}.lora_up.weight": UP, key: rows}
    found = read_lora(save(tmp_path / "lora.safetensors", tensors))
    assert found.tokens == ("word", "word_1")
    assert torch.equal(found.embeddings["word_1"][BUNDLES[key]], rows[1])


def test_an_unknown_bundled_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoraFileError, match=r"bundle_emb\.word\.t5"):
        read_lora(save(tmp_path / "lora.safetensors", {"bundle_emb.word.t5": torch.ones(2, 3)}))


@pytest.mark.parametrize(
    ("tensors", "tokens"),
    [
        ({"emb_params": torch.ones(2, 4)}, {"my_cat": {"text_encoder"}, "my_cat_1": {"text_encoder"}}),
        ({"clip_l": torch.ones(1, 4), "clip_g": torch.ones(1, 6)}, {"my_cat": {"text_encoder", "text_encoder_2"}}),
        ({"<cat>": torch.ones(4)}, {"<cat>": {"text_encoder"}}),
    ],
)
def test_embedding_files_hold_tokens_only(tensors: dict, tokens: dict, tmp_path: Path) -> None:
    found = read_lora(save(tmp_path / "my cat.safetensors", tensors))
    assert found.layout == "embedding"
    assert {name: set(rows) for name, rows in found.embeddings.items()} == tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_written_as_an_embedding_file(family: str, tmp_path: Path) -> None:
    lora = random_lora(small_models(family).components, tokens=TOKEN_NAMES)
    write_lora(tmp_path / "word.safetensors", lora, layout="embedding")
    found = read_lora(tmp_path / "word.safetensors")
    assert found.tokens == ("word", "word_1")
    for (_, rows), (_, wanted) in zip(found.embeddings.items(), lora.embeddings.items(), strict=True):
        assert rows.keys() == wanted.keys()
        assert all(torch.equal(rows[component].float(), wanted[component]) for component in rows)


def test_a_lora_without_tokens_is_no_embedding_file(tmp_path: Path) -> None:
    with pytest.raises(LoraFileError, match="no learned tokens"):
        write_lora(tmp_path / "word.safetensors", random_lora(small_models().components), layout="embedding")


REFUSED = {
    "OFT": ({f"{UNET_KEY}.oft_blocks": torch.ones(2, 2, 2)}, "OFT"),
    "a full difference": ({f"{UNET_KEY}.diff": torch.ones(2, 2)}, "full difference"),
    "biases": (
        {f"{UNET_KEY}.lora_down.weight": DOWN, f"{UNET_KEY}.lora_up.weight": UP, f"{UNET_KEY}.diff_b": UP},
        "bias",
    ),
    "half a pair": ({f"{UNET_KEY}.lora_down.weight": DOWN}, r"has no 'lora_up\.weight'"),
    "a pair that does not fit": (
        {f"{UNET_KEY}.lora_down.weight": DOWN, f"{UNET_KEY}.lora_up.weight": DOWN},
        "fit each other",
    ),
    "alpha alone": ({f"{UNET_KEY}.alpha": torch.tensor(1.0)}, "'alpha'"),
    "two alphas": (
        {f"{UNET_KEY}.lora_down.weight": DOWN, f"{UNET_KEY}.lora_up.weight": UP, f"{UNET_KEY}.alpha": torch.ones(2)},
        "2 alphas",
    ),
    "Flux": ({"lora_unet_x.lora_down.weight": DOWN, "lora_transformer_y.lora_up.weight": UP}, "other models"),
    "a PEFT file for Flux": ({"transformer.blocks.0.lora_A.weight": DOWN}, "other models"),
    "another key among kohya's": ({f"{UNET_KEY}.lora_down.weight": DOWN, "note": UP}, "'note'"),
    "another key among PEFT's": ({f"unet.{UNET_PATH}.lora_A.weight": DOWN, "note": UP}, "'note'"),
    "another key among numbers": ({"unet:0:up": UP, "note": UP}, "'note'"),
    "another key among embeddings": ({"emb_params": UP, "note": UP}, "'note'"),
    "a whole model": ({"model.diffusion_model.out.2.weight": UP}, "no LoRA layout"),
    "nothing": ({}, "no LoRA layout"),
    "NaN": ({f"{UNET_KEY}.lora_down.weight": DOWN * float("nan"), f"{UNET_KEY}.lora_up.weight": UP}, "NaN"),
    "infinity": ({f"{UNET_KEY}.lora_down.weight": DOWN, f"{UNET_KEY}.lora_up.weight": UP / 0}, "infinite"),
    "a rank of a million": (
        {f"{UNET_KEY}.lora_down.weight": torch.ones(10**6, 1), f"{UNET_KEY}.lora_up.weight": torch.ones(1, 10**6)},
        "rank 1000000",
    ),
    "a weight of exabytes": (
        {f"{UNET_KEY}.lora_down.weight": torch.ones(1, 10**6), f"{UNET_KEY}.lora_up.weight": torch.ones(10**6, 1)},
        "no base served",
    ),
    "a token with a space": ({"bundle_emb.a b.emb_params": torch.ones(1, 3)}, "word of a prompt"),
    "a thousand tokens": ({"emb_params": torch.ones(1000, 3)}, "at most 256 rows"),
    "an embedding of three dimensions": ({"emb_params": torch.ones(2, 2, 2)}, "rows, width"),
    "two embeddings of one name": ({"emb_params": torch.ones(1, 3), "clip_l": torch.ones(1, 3)}, "two embeddings"),
    "tokens of two widths": ({"<a>": torch.ones(3), "<b>": torch.ones(4)}, "different widths"),
    "one module twice": (
        {
            f"unet.{UNET_PATH}.lora_A.weight": DOWN,
            f"{UNET_PATH}.lora_A.weight": DOWN,
            f"unet.{UNET_PATH}.lora_B.weight": UP,
        },
        "two tensors",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_refused_by_name(name: str, tmp_path: Path) -> None:
    tensors, message = REFUSED[name]
    with pytest.raises(LoraFileError, match=message) as caught:
        read_lora(save(tmp_path / "lora.safetensors", tensors))
    assert str(caught.value).startswith("lora.safetensors: ")


def test_an_unknown_layout_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one of kohya, diffusers, cloneofsimo, embedding"):
        write_lora(tmp_path / "lora.safetensors", random_lora(small_models().components), layout="flux")
