"""Every key spelling in circulation is read as the module it means, and what is written is read back the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lora_service.errors import InputError, LoraFileError
from lora_service.lora.files import FORMAT_NAMES, read_lora, write_lora
from lora_service.lora.weights import LoraWeights
from tests.errors import raises
from tests.lora.lora_fakes import (
    TOKEN_NAMES,
    assert_same_changes,
    is_attention,
    is_convolution,
    random_lora,
    save,
)
from tests.small_models import FAMILIES, small_models

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
@pytest.mark.parametrize("lora_format", ["kohya", "diffusers"])
@pytest.mark.parametrize("targets", [is_attention, everything])
def test_a_lora_of_any_base_is_written_and_read_back(family: str, lora_format: str, targets, tmp_path: Path) -> None:
    lora = random_lora(small_models(family).components, alpha=2.0, targets=targets, tokens=TOKEN_NAMES)
    write_lora(tmp_path / "lora.safetensors", lora, format=lora_format)
    reread = read_lora(tmp_path / "lora.safetensors")
    assert reread.format == lora_format
    assert_same_changes(lora, reread)


UNET_SPELLINGS = {
    "kohya": (f"{UNET_KEY}.lora_down.weight", f"{UNET_KEY}.lora_up.weight"),
    "PEFT": (f"unet.{UNET_PATH}.lora_A.weight", f"unet.{UNET_PATH}.lora_B.weight"),
    "PEFT with an adapter's name": (
        f"unet.{UNET_PATH}.lora_A.default.weight",
        f"unet.{UNET_PATH}.lora_B.default.weight",
    ),
    "PEFT with any adapter's name": (
        f"unet.{UNET_PATH}.lora_A.my-cat_2.weight",
        f"unet.{UNET_PATH}.lora_B.my-cat_2.weight",
    ),
    "kohya's suffixes with a path": (f"unet.{UNET_PATH}.lora_down.weight", f"unet.{UNET_PATH}.lora_up.weight"),
    "kohya's suffixes without a prefix": (f"{UNET_PATH}.lora_down.weight", f"{UNET_PATH}.lora_up.weight"),
    "kohya's prefix with a path": (f"lora_unet.{UNET_PATH}.lora_down", f"lora_unet.{UNET_PATH}.lora_up"),
    "kohya's names with PEFT's suffixes": (f"{UNET_KEY}.lora_A.weight", f"{UNET_KEY}.lora_B.weight"),
    "LyCORIS of a whole model": (
        UNET_KEY.replace("lora_unet", "lycoris") + ".lora_down.weight",
        UNET_KEY.replace("lora_unet", "lycoris") + ".lora_up.weight",
    ),
    "ComfyUI": (
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora_A.weight",
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora_B.weight",
    ),
    "ComfyUI with kohya's suffixes": (
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora_down.weight",
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora_up.weight",
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
    "ComfyUI": "text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj.lora_{peft}.weight",
    "ComfyUI's of SD 2": "text_encoders.clip_h.transformer.text_model.encoder.layers.0.self_attn.q_proj.lora_{peft}",
    "kohya's prefix with a path": "lora_te.text_model.encoder.layers.0.self_attn.q_proj.lora_{kohya}.weight",
    "LyCORIS of a whole model": "lycoris_text_model_encoder_layers_0_self_attn_q_proj.lora_{kohya}.weight",
    "one model": "text_model.encoder.layers.0.self_attn.q_proj.lora_{peft}.weight",
}


@pytest.mark.parametrize("spelling", UNET_SPELLINGS)
def test_a_unet_module_is_read_under_each_spelling(spelling: str, tmp_path: Path) -> None:
    down, up = UNET_SPELLINGS[spelling]
    component, path, change = only_module(read_lora(save(tmp_path / "lora.safetensors", {down: DOWN, up: UP})))
    assert (component, path) == ("unet", UNET_PATH)
    assert torch.equal(change, PRODUCT)


@pytest.mark.parametrize("spelling", TEXT_SPELLINGS)
def test_a_text_encoder_module_is_read_under_each_spelling(spelling: str, tmp_path: Path) -> None:
    down, up = (TEXT_SPELLINGS[spelling].format(kohya=k, peft=p) for k, p in (("down", "A"), ("up", "B")))
    component, path, change = only_module(read_lora(save(tmp_path / "lora.safetensors", {down: DOWN, up: UP})))
    assert (component, path) == ("text_encoder", TEXT_PATH)
    assert torch.equal(change, PRODUCT)


def test_the_second_encoder_is_read_under_comfyuis_name(tmp_path: Path) -> None:
    key = f"text_encoders.clip_g.transformer.text_model.{TEXT_PATH}"
    tensors = {f"{key}.lora_A.weight": DOWN, f"{key}.lora_B.weight": UP}
    component, path, change = only_module(read_lora(save(tmp_path / "lora.safetensors", tensors)))
    assert (component, path) == ("text_encoder_2", TEXT_PATH)
    assert torch.equal(change, PRODUCT)


def test_a_unet_of_kohya_and_a_text_encoder_of_peft_may_share_a_file(tmp_path: Path) -> None:
    tensors = {f"{UNET_KEY}.lora_down.weight": DOWN, f"{UNET_KEY}.lora_up.weight": UP}
    tensors[f"{UNET_KEY}.alpha"] = torch.tensor(1.0)
    tensors |= {f"text_encoder.text_model.{TEXT_PATH}.lora_{k}.weight": t for k, t in (("A", DOWN), ("B", UP))}
    strings = {"lora_adapter_metadata": json.dumps({"text_encoder.lora_alpha": 4})}
    lora = read_lora(save(tmp_path / "lora.safetensors", tensors, strings))
    assert torch.equal(delta(lora, "unet", UNET_PATH), PRODUCT / 2)
    assert torch.equal(delta(lora, "text_encoder", TEXT_PATH), PRODUCT * 2)


MAGNITUDES = ["dora_scale", "magnitude", "lora_magnitude_vector", "lora_magnitude_vector.weight"]


@pytest.mark.parametrize("suffix", [*MAGNITUDES, "lora_magnitude_vector.default.weight"])
@pytest.mark.parametrize("naming", ["kohya", "PEFT"])
def test_magnitudes_are_read_under_each_spelling(suffix: str, naming: str, tmp_path: Path) -> None:
    down, up = UNET_SPELLINGS[naming]
    module = UNET_KEY if naming == "kohya" else f"unet.{UNET_PATH}"
    shape = (3, 1) if suffix in ("dora_scale", "magnitude") else (1, 3, 1, 1)
    tensors = {down: DOWN, up: UP, f"{module}.{suffix}": torch.tensor([1.0, 2.0, 3.0]).reshape(shape)}
    ((_, path, change),) = read_lora(save(tmp_path / "lora.safetensors", tensors))
    assert (path, change.kind) == (UNET_PATH, "DoRA over LoRA")
    weight = torch.ones(3, 3)
    torch.testing.assert_close((weight + change.delta(weight)).norm(dim=1), torch.tensor([1.0, 2.0, 3.0]))


def test_auxiliary_tensors_of_sliders_are_left_out_with_a_warning(tmp_path: Path) -> None:
    tensors = {f"{UNET_KEY}.lora_down.weight": DOWN, f"{UNET_KEY}.lora_up.weight": UP, "_aux.scale": torch.ones(1)}
    lora = read_lora(save(tmp_path / "lora.safetensors", tensors))
    assert torch.equal(only_module(lora)[2], PRODUCT)
    assert len(lora.warnings) == 1


DIFFERENCES = {
    "diff": ("down_blocks_0_resnets_0_conv1", "down_blocks.0.resnets.0.conv1", (4, 3, 3, 3)),
    "diff_b": ("down_blocks_0_resnets_0_conv1", "down_blocks.0.resnets.0.conv1.bias", (4,)),
    "w_norm": ("down_blocks_0_resnets_0_norm1", "down_blocks.0.resnets.0.norm1", (4,)),
    "b_norm": ("down_blocks_0_resnets_0_norm1", "down_blocks.0.resnets.0.norm1.bias", (4,)),
}


@pytest.mark.parametrize("suffix", DIFFERENCES)
def test_full_differences_are_added_as_they_are_and_written_again(suffix: str, tmp_path: Path) -> None:
    name, path, shape = DIFFERENCES[suffix]
    values = torch.arange(1.0, 1 + torch.Size(shape).numel()).reshape(shape)
    tensors = {f"lora_unet_{name}.{suffix}": values, f"lora_unet_{name}.alpha": torch.tensor(0.5)}
    if suffix.startswith("diff"):
        del tensors[f"lora_unet_{name}.alpha"]
    lora = read_lora(save(tmp_path / "lora.safetensors", tensors))
    assert only_module(lora)[1] == path
    assert torch.equal(only_module(lora)[2], values)
    write_lora(tmp_path / "again.safetensors", lora)
    assert f"lora_unet_{name}.{suffix}" in load_file(tmp_path / "again.safetensors")
    assert torch.equal(only_module(read_lora(tmp_path / "again.safetensors"))[2], values)
    for lora_format in ("diffusers", "cloneofsimo"):
        with raises(LoraFileError, code="unsupported_by_format"):
            write_lora(tmp_path / "other.safetensors", lora, format=lora_format)


def test_the_bias_of_the_second_factor_is_scaled_as_the_product_is(tmp_path: Path) -> None:
    """Compare with PEFT's merge of a layer with ``lora_bias``."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(5, 7))
    weight, bias = base[0].weight.detach().clone(), base[0].bias.detach().clone()
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["0"], init_lora_weights=False, lora_bias=True)
    model = get_peft_model(base, config)
    key = f"unet.{UNET_PATH}"
    tensors = {
        key + "." + name.partition("0.")[2].replace(".default", ""): parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if "lora_" in name
    }
    model.merge_adapter()
    merged = model.base_model.model[0].base_layer
    strings = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 3})}
    lora = read_lora(save(tmp_path / "lora.safetensors", tensors, strings))
    torch.testing.assert_close(weight + delta(lora, "unet", UNET_PATH), merged.weight.detach())
    torch.testing.assert_close(bias + delta(lora, "unet", f"{UNET_PATH}.bias"), merged.bias.detach())


@pytest.mark.parametrize(
    ("config", "factor"),
    [
        ({"r": 2, "lora_alpha": 4, "peft_type": "LORA"}, 2.0),
        ({"r": 2, "lora_alpha": 4, "use_rslora": True}, 4 / 2**0.5),
        ({"r": 2, "lora_alpha": 4, "alpha_pattern": {"attn1.to_q": 1}}, 0.5),
        ({"r": 2}, 1.0),
        (None, 1.0),
    ],
)
def test_alpha_of_a_peft_folder_comes_from_the_configuration_beside_it(
    config: dict | None, factor: float, tmp_path: Path
) -> None:
    tensors = {f"base_model.model.{UNET_PATH}.lora_{k}.weight": t for k, t in (("A", DOWN), ("B", UP))}
    path = save(tmp_path / "adapter_model.safetensors", tensors)
    if config is not None:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    lora = read_lora(path)
    torch.testing.assert_close(only_module(lora)[2], PRODUCT * factor)
    assert len(lora.warnings) == (config is None)


@pytest.mark.parametrize("text", ["{", "[]", '{"lora_alpha": "many"}', "\udcff"])
def test_a_configuration_beside_the_file_without_usable_numbers_is_refused(text: str, tmp_path: Path) -> None:
    tensors = {f"base_model.model.{UNET_PATH}.lora_{k}.weight": t for k, t in (("A", DOWN), ("B", UP))}
    (tmp_path / "adapter_config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with raises(LoraFileError, code="bad_metadata") as caught:
        read_lora(save(tmp_path / "adapter_model.safetensors", tensors))
    assert "adapter_config.json" in str(caught.value)


OTHER_MODELS = {
    "Hunyuan-DiT": "lora_unet_blocks_0_attn1_Wqkv.lora_down.weight",
    "Wan": "diffusion_model.blocks.0.self_attn.q.lora_A.weight",
    "AuraFlow": "transformer.joint_transformer_blocks.0.attn.to_q.lora_A.weight",
    "a T5 encoder": "lora_te3_encoder_block_0_layer_0_SelfAttention_k.lora_down.weight",
}


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_a_lora_for_another_model_is_refused_by_name(name: str, tmp_path: Path) -> None:
    key = OTHER_MODELS[name]
    with raises(LoraFileError) as caught:
        read_lora(save(tmp_path / "lora.safetensors", {key: DOWN}))
    assert caught.value.code in ("unknown_key", "other_model")
    assert key in str(caught.value)


def test_the_output_projection_of_an_attention_processor_is_a_list_of_layers(tmp_path: Path) -> None:
    key = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_out_lora"
    lora = read_lora(save(tmp_path / "lora.safetensors", {f"{key}.down.weight": DOWN, f"{key}.up.weight": UP}))
    assert only_module(lora)[1] == "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"


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
    [
        "{",
        "[]",
        '{"unet.lora_alpha": "many"}',
        '{"unet.lora_alpha": 1' + "0" * 400 + "}",
        '{"unet.alpha_pattern": {"(a+)+b": 1}}',
        '{"unet.alpha_pattern": 3}',
    ],
)
def test_a_configuration_without_usable_numbers_is_refused(text: str, tmp_path: Path) -> None:
    tensors = {f"unet.{UNET_PATH}.lora_A.weight": DOWN, f"unet.{UNET_PATH}.lora_B.weight": UP}
    with raises(LoraFileError, code="bad_metadata") as caught:
        read_lora(save(tmp_path / "lora.safetensors", tensors, {"lora_adapter_metadata": text}))
    assert "lora_adapter_metadata" in str(caught.value)


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
    lora = read_lora(
        save(tmp_path / "lora.safetensors", {f"{key}.lora_down.weight": DOWN, f"{key}.lora_up.weight": UP})
    )
    assert only_module(lora)[1] == ORIGINAL_NAMES[original]


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
    """Compare with peft's formula for a Tucker core in the middle, written out as sums."""
    generator = torch.Generator().manual_seed(0)
    down, mid, up = (torch.randn(shape, generator=generator) for shape in ((2, 3, 1, 1), (2, 2, 3, 3), (4, 2, 1, 1)))
    key = "lora_unet_conv_in"
    tensors = {f"{key}.lora_{name}.weight": tensor for name, tensor in (("down", down), ("mid", mid), ("up", up))}
    lora = read_lora(save(tmp_path / "lora.safetensors", tensors))
    expected = torch.zeros(4, 3, 3, 3)
    for out in range(4):
        for inside in range(3):
            for row in range(2):
                for column in range(2):
                    expected[out, inside] += up[out, row, 0, 0] * mid[row, column] * down[column, inside, 0, 0]
    torch.testing.assert_close(only_module(lora)[2], expected)
    for lora_format in ("kohya", "diffusers"):
        write_lora(tmp_path / "again.safetensors", lora, format=lora_format, dtype=torch.float32)
        torch.testing.assert_close(only_module(read_lora(tmp_path / "again.safetensors"))[2], expected)


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
    lora = read_lora(save(tmp_path / "lora.safetensors", tensors))
    assert lora.tokens == ("word", "word_1")
    assert torch.equal(lora.embeddings["word_1"][BUNDLES[key]], rows[1])


BAD_BUNDLES = {
    "another encoder's": ("word.t5", torch.ones(2, 3)),
    "an output's": ("word.clip_l_out", torch.ones(2, 3)),
    "too many rows": ("word.clip_l", torch.ones(1000, 3)),
    "three dimensions": ("word.clip_l", torch.ones(2, 2, 2)),
    "NaN": ("word.clip_l", torch.full((1, 3), float("nan"))),
    "another width": ("word.clip_l", torch.ones(1, 4)),
}


@pytest.mark.parametrize("name", BAD_BUNDLES)
@pytest.mark.parametrize("naming", ["kohya", "diffusers"])
def test_a_bundled_embedding_that_cannot_be_used_does_not_sink_the_lora(name: str, naming: str, tmp_path: Path) -> None:
    key, tensor = BAD_BUNDLES[name]
    down, up = UNET_SPELLINGS["kohya" if naming == "kohya" else "PEFT"]
    tensors = {down: DOWN, up: UP, "bundle_emb.good.clip_l": torch.ones(1, 3), f"bundle_emb.{key}": tensor}
    lora = read_lora(save(tmp_path / "lora.safetensors", tensors))
    assert lora.format == naming
    assert torch.equal(only_module(lora)[2], PRODUCT)
    assert lora.tokens == ("good",)
    (warning,) = lora.warnings
    assert "word" in warning


@pytest.mark.parametrize(("name", "token"), [("ema yasuhara", "ema_yasuhara"), ("v1.5 cat", "v1.5_cat")])
def test_a_bundled_embedding_is_called_by_one_word(name: str, token: str, tmp_path: Path) -> None:
    tensors = {f"{UNET_KEY}.lora_down.weight": DOWN, f"{UNET_KEY}.lora_up.weight": UP}
    tensors[f"bundle_emb.{name}.clip_l"] = torch.ones(1, 3)
    lora = read_lora(save(tmp_path / "lora.safetensors", tensors))
    assert lora.tokens == (token,)
    assert lora.warnings == ()


@pytest.mark.parametrize(
    ("tensors", "tokens"),
    [
        ({"emb_params": torch.ones(2, 4)}, {"my_cat": {"text_encoder"}, "my_cat_1": {"text_encoder"}}),
        ({"clip_l": torch.ones(1, 4), "clip_g": torch.ones(1, 6)}, {"my_cat": {"text_encoder", "text_encoder_2"}}),
        ({"<cat>": torch.ones(4)}, {"<cat>": {"text_encoder"}}),
        ({"cat": torch.ones(2, 4)}, {"cat": {"text_encoder"}, "cat_1": {"text_encoder"}}),
        ({"my old cat": torch.ones(4)}, {"my_old_cat": {"text_encoder"}}),
        ({"string_to_param.*": torch.ones(1, 4)}, {"my_cat": {"text_encoder"}}),
        (
            {"text_encoders_0": torch.ones(2, 4), "text_encoders_1": torch.ones(2, 6)},
            {"<s0>": {"text_encoder", "text_encoder_2"}, "<s1>": {"text_encoder", "text_encoder_2"}},
        ),
    ],
)
def test_embedding_files_hold_tokens_only(tensors: dict, tokens: dict, tmp_path: Path) -> None:
    lora = read_lora(save(tmp_path / "my cat.safetensors", tensors))
    assert lora.format == "embedding"
    assert {name: set(rows) for name, rows in lora.embeddings.items()} == tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_written_as_an_embedding_file(family: str, tmp_path: Path) -> None:
    lora = random_lora(small_models(family).components, tokens=TOKEN_NAMES)
    write_lora(tmp_path / "word.safetensors", lora, format="embedding")
    reread = read_lora(tmp_path / "word.safetensors")
    assert reread.tokens == ("word", "word_1")
    for rows, expected in zip(reread.embeddings.values(), lora.embeddings.values(), strict=True):
        assert rows.keys() == expected.keys()
        assert all(torch.equal(rows[component].float(), expected[component]) for component in rows)


def test_a_lora_without_tokens_is_no_embedding_file(tmp_path: Path) -> None:
    with raises(LoraFileError, code="no_tokens"):
        write_lora(tmp_path / "word.safetensors", random_lora(small_models().components), format="embedding")


REFUSED = {
    "OFT": ({f"{UNET_KEY}.oft_blocks": torch.ones(2, 2, 2)}, "unsupported_kind", "OFT"),
    "a bias of two dimensions": (
        {f"{UNET_KEY}.lora_down.weight": DOWN, f"{UNET_KEY}.lora_up.weight": UP, f"{UNET_KEY}.diff_b": UP},
        "shape_mismatch",
        "diff_b (3, 2)",
    ),
    "two biases": (
        {f"{UNET_KEY}.b_norm": torch.ones(2), f"{UNET_KEY}.diff_b": torch.ones(2)},
        "shape_mismatch",
        "b_norm (2,)",
    ),
    "a bias of the first factor": (
        {f"{UNET_KEY}.lora_down.weight": DOWN, f"{UNET_KEY}.lora_up.weight": UP, f"{UNET_KEY}.lora_down.bias": UP},
        "unsupported_kind",
        "lora_down.bias or lora_A.bias",
    ),
    "magnitudes of a difference": (
        {f"{UNET_KEY}.diff": UP, f"{UNET_KEY}.dora_scale": torch.ones(3, 1)},
        "unsupported_kind",
        "dora_scale",
    ),
    "an unknown tensor": (
        {f"{UNET_KEY}.lora_down.weight": DOWN, f"{UNET_KEY}.lora_up.weight": UP, f"{UNET_KEY}.extra": UP},
        "unknown_key",
        "'extra'",
    ),
    "half a pair": ({f"{UNET_KEY}.lora_down.weight": DOWN}, "missing_tensor", "'lora_up.weight'"),
    "a pair that does not fit": (
        {f"{UNET_KEY}.lora_down.weight": DOWN, f"{UNET_KEY}.lora_up.weight": DOWN},
        "shape_mismatch",
        "lora_up.weight (2, 3)",
    ),
    "alpha alone": ({f"{UNET_KEY}.alpha": torch.tensor(1.0)}, "missing_tensor", UNET_PATH),
    "two alphas": (
        {f"{UNET_KEY}.lora_down.weight": DOWN, f"{UNET_KEY}.lora_up.weight": UP, f"{UNET_KEY}.alpha": torch.ones(2)},
        "bad_alpha",
        "2 alphas",
    ),
    "Flux": (
        {"lora_unet_x.lora_down.weight": DOWN, "lora_transformer_y.lora_up.weight": UP},
        "unknown_key",
        "'lora_transformer_y.lora_up.weight'",
    ),
    "a PEFT file for Flux": (
        {"transformer.blocks.0.lora_A.weight": DOWN},
        "unknown_key",
        "'transformer.blocks.0.lora_A.weight'",
    ),
    "another key among kohya's": ({f"{UNET_KEY}.lora_down.weight": DOWN, "note": UP}, "unknown_key", "'note'"),
    "another key among PEFT's": ({f"unet.{UNET_PATH}.lora_A.weight": DOWN, "note": UP}, "unknown_key", "'note'"),
    "another key among numbers": ({"unet:0:up": UP, "note": UP}, "unknown_key", "'note'"),
    "another key among embeddings": ({"emb_params": UP, "note": UP}, "unknown_key", "'note'"),
    "a whole model": (
        {"model.diffusion_model.out.2.weight": UP},
        "checkpoint",
        "'model.diffusion_model.out.2.weight'",
    ),
    "a VAE": ({"first_stage_model.decoder.conv_in.weight": UP}, "vae", "VAE"),
    "a VAE of diffusers": ({"decoder.up_blocks.0.resnets.0.conv1.weight": UP}, "vae", "VAE"),
    "a VAE of its own": ({"encoder.down.0.block.0.conv1.weight": UP, "quant_conv.bias": UP}, "vae", "VAE"),
    "a ControlNet": ({"control_model.input_blocks.0.0.weight": UP}, "controlnet", "ControlNet"),
    "a ControlNet of diffusers": (
        {"conv_in.weight": UP, "controlnet_cond_embedding.conv_in.weight": UP},
        "controlnet",
        "ControlNet",
    ),
    "an IP-Adapter": ({"image_proj.proj.weight": UP, "ip_adapter.1.to_k_ip.weight": UP}, "ip_adapter", "IP-Adapter"),
    "a T2I adapter": ({"adapter.body.0.resnets.0.block1.weight": UP}, "t2i_adapter", "T2I"),
    "a UNet": ({"down_blocks.0.resnets.0.conv1.weight": UP}, "unet", "UNet"),
    "a text encoder": ({"text_model.encoder.layers.0.mlp.fc1.weight": UP}, "text_encoder", "text encoder"),
    "FLUX itself": ({"double_blocks.0.img_mod.lin.weight": UP}, "other_model", "double_blocks"),
    "keys of nobody": ({"a.b": UP}, "unknown_format", "'a.b'"),
    "nothing": ({}, "unknown_format", "none"),
    "NaN": (
        {f"{UNET_KEY}.lora_down.weight": DOWN * float("nan"), f"{UNET_KEY}.lora_up.weight": UP},
        "not_finite",
        "lora_down",
    ),
    "infinity": (
        {f"{UNET_KEY}.lora_down.weight": DOWN, f"{UNET_KEY}.lora_up.weight": UP / 0},
        "not_finite",
        "lora_up",
    ),
    "a rank of a million": (
        {f"{UNET_KEY}.lora_down.weight": torch.ones(10**6, 1), f"{UNET_KEY}.lora_up.weight": torch.ones(1, 10**6)},
        "too_large",
        "rank 1000000",
    ),
    "a weight of terabytes": (
        {f"{UNET_KEY}.lora_down.weight": torch.ones(1, 10**6), f"{UNET_KEY}.lora_up.weight": torch.ones(10**6, 1)},
        "too_large",
        "(1000000, 1000000)",
    ),
    "a token of a hundred letters": ({"c" * 100: torch.ones(1, 3)}, "bad_token", "'ccc"),
    "a thousand tokens": ({"emb_params": torch.ones(1000, 3)}, "bad_embedding", "256 rows"),
    "an embedding of three dimensions": ({"emb_params": torch.ones(2, 2, 2)}, "bad_embedding", "(2, 2, 2)"),
    "two embeddings of one name": (
        {"emb_params": torch.ones(1, 3), "clip_l": torch.ones(1, 3)},
        "duplicate_tensor",
        "'lora'",
    ),
    "tokens of two widths": ({"<a>": torch.ones(3), "<b>": torch.ones(4)}, "bad_embedding", "text_encoder"),
    "one module twice": (
        {
            f"unet.{UNET_PATH}.lora_A.weight": DOWN,
            f"{UNET_PATH}.lora_A.weight": DOWN,
            f"unet.{UNET_PATH}.lora_B.weight": UP,
        },
        "duplicate_tensor",
        f"unet.{UNET_PATH}",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_refused_by_name(name: str, tmp_path: Path) -> None:
    tensors, code, quoted = REFUSED[name]
    with raises(LoraFileError, code=code) as caught:
        read_lora(save(tmp_path / "lora.safetensors", tensors))
    assert str(caught.value).startswith("lora.safetensors: ")
    assert quoted in str(caught.value)


def test_an_unknown_format_cannot_be_written(tmp_path: Path) -> None:
    with raises(InputError, field="format") as caught:
        write_lora(tmp_path / "lora.safetensors", random_lora(small_models().components), format="flux")
    assert all(name in caught.value.expected for name in FORMAT_NAMES)
