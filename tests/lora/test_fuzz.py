"""Any file is either read as weights that can be shown and tried on a model, or refused by one of our errors.

``FUZZ_EXAMPLES=1000000 pytest tests/lora/test_fuzz.py`` tries many.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lora_service.errors import LoraFileError
from lora_service.lora.files import FORMAT_NAMES, parse_lora, read_lora, write_lora
from lora_service.lora.patcher import Patcher
from lora_service.lora.safetensors_file import TensorFile, serialize
from lora_service.lora.safetensors_header import read_header
from lora_service.lora.scale import Scale
from lora_service.lora.summary import as_json, as_text, summarize
from lora_service.lora.weights import LoraWeights
from tests.lora.lora_fakes import assert_same_state, random_lora, raw_file, state_of
from tests.small_models import small_models

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "100"))
many = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    derandomize=EXAMPLES < 1000,
)
MODELS = small_models("sd1")
BEFORE = state_of(MODELS.components)

MODULES = st.sampled_from(
    [
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
        "lora_unet_down_blocks_0_attentions_0_proj_in",
        "lora_unet_conv_in",
        "lora_unet_down_blocks_0_resnets_0_norm1",
        "lycoris_conv_in",
        "diffusion_model.input_blocks.0.0",
        "lora_unet_input_blocks_4_1_proj_in",
        "lora_unet_input_blocks_0_0",
        "lora_unet_middle_block_9_x",
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
        "lora_te2_encoder_layers_0_mlp_fc1",
        "lora_te3_x",
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
        "unet.conv_in",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor",
        "text_encoder.text_model.encoder.layers.0.self_attn",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
        "base_model.model.mid_block.attentions.0.proj_in",
        "transformer.x",
        "transformer.transformer_blocks.0.attn.to_q",
        "diffusion_model.double_blocks.0.img_attn.qkv",
        "lora_unet_single_blocks_0_linear1",
        "lora_unet_joint_blocks_1_context_block_adaLN_modulation_1",
        "lycoris_layers_0_attention_to_out_0",
        "double_blocks.0.processor.qkv_lora1",
        "bundle_emb.word",
        "bundle_emb.<s1>",
    ]
)
SUFFIXES = st.sampled_from(
    [
        *(f"lora_{name}.weight" for name in ("down", "up", "mid", "A", "B")),
        *(f"{layer}.{name}.weight" for layer in ("lora", "lora_linear_layer", "to_q_lora") for name in ("down", "up")),
        *(f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
        *(f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")),
        *("alpha", "dora_scale", "lora_magnitude_vector", "diff", "diff_b", "oft_blocks"),
        *("w_norm", "b_norm", "lora_up.bias", "lora_B.bias", "magnitude", "lora_A.NAME.weight", "clip_l_out"),
        *("emb_params", "clip_l", "clip_g", "string_to_param.*"),
    ]
)
WHOLE_KEYS = st.sampled_from(
    [
        "unet:0:up",
        "unet:0:down",
        "unet:1:up",
        "text_encoder:0:up",
        "text_encoder:0:down",
        "<s1>",
        "emb_params",
        "clip_l",
        "clip_g",
        "text_encoders_0",
        "text_encoders_1",
        "cat",
    ]
)
KEYS = st.one_of(st.builds("{}.{}".format, MODULES, SUFFIXES), WHOLE_KEYS, st.text(max_size=12))
SIZES = st.sampled_from([0, 1, 1, 2, 2, 3, 32, 64])
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64])
VALUES = st.sampled_from([1.0, 1.0, 1.0, 0.0, -3.0, 1e4, float("nan"), float("inf")])


def tensor(shape: list[int], dtype: torch.dtype, value: float) -> Tensor:
    finite = value if value - value == 0 else 7.0
    return torch.full(shape, finite if dtype == torch.int64 else value, dtype=dtype)


TENSORS = st.builds(tensor, st.lists(SIZES, max_size=4), DTYPES, VALUES)
JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6), st.just([1]), st.just("AAA=")),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ["unet.lora_alpha", "unet.alpha_pattern", "to_q", "unet", "<s1>", "text_encoder", "data", "shape"]
            ),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=8,
)
STRINGS = st.dictionaries(
    st.sampled_from(
        ["lora_adapter_metadata", "lora_service.tokens", "lora_service.modules", "<s1>", "modelspec.trigger_phrase",
         "modelspec.thumbnail", "modelspec.architecture", "ss_base_model_version", "unet"]
    ),
    st.one_of(st.text(max_size=10), st.just("<embed>"), JSON_VALUES.map(json.dumps)),
    max_size=3,
)  # fmt: skip
FILES = st.builds(TensorFile, st.dictionaries(KEYS, TENSORS, max_size=6), STRINGS, st.text(max_size=8))


def use(weights: LoraWeights, folder: Path) -> None:
    """Show the weights, try them on a model, and write them in every format; only our own errors may be raised."""
    as_text(summarize(weights))
    json.loads(as_json(summarize(weights)))
    patcher = Patcher(MODELS.components, MODELS.tokenizers)
    try:
        patcher.apply([(weights, Scale(1.0, 0.5))])
    except LoraFileError:
        pass
    else:
        patcher.restore()
    for lora_format in FORMAT_NAMES:
        try:
            write_lora(folder / "again.safetensors", weights, format=lora_format)
        except LoraFileError:
            continue
        read_header(folder / "again.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@many
@given(file=FILES)
@pytest.mark.attack("hostile LoRA files", count=EXAMPLES)
def test_any_keys_shapes_and_strings_end_in_weights_or_in_our_error(file: TensorFile, folder: Path) -> None:
    try:
        weights = parse_lora(file)
    except LoraFileError:
        return
    use(weights, folder)


@many
@given(content=st.binary(max_size=200))
@pytest.mark.attack("hostile LoRA files", count=EXAMPLES)
def test_any_bytes_end_in_our_error(content: bytes, folder: Path) -> None:
    path = folder / "bytes.safetensors"
    path.write_bytes(content)
    with pytest.raises(LoraFileError):
        read_lora(path)


@many
@given(
    header=st.one_of(st.binary(max_size=60), JSON_VALUES.map(lambda value: json.dumps(value).encode())),
    data=st.binary(max_size=9),
)
@pytest.mark.attack("hostile LoRA files", count=EXAMPLES)
def test_any_header_ends_in_our_error(header: bytes, data: bytes, folder: Path) -> None:
    with pytest.raises(LoraFileError):
        read_lora(raw_file(folder / "header.safetensors", header, data))


VALID = serialize(
    {
        "lora_unet_conv_in.lora_down.weight": torch.ones(2, 4, 3, 3),
        "lora_unet_conv_in.lora_up.weight": torch.ones(32, 2, 1, 1),
        "lora_unet_conv_in.alpha": torch.tensor(2.0),
    },
    {"ss_base_model_version": "sd_v1"},
    torch.float16,
)
EDITS = st.lists(
    st.tuples(st.integers(0, 420), st.sampled_from(b'{}[]",:0123456789-eF_\x00\xff')), min_size=1, max_size=4
)


@many
@given(edits=EDITS, cut=st.one_of(st.none(), st.integers(0, len(VALID))))
@pytest.mark.attack("hostile LoRA files", count=EXAMPLES)
def test_a_damaged_file_ends_in_weights_or_in_our_error(
    edits: list[tuple[int, int]], cut: int | None, folder: Path
) -> None:
    content = bytearray(VALID)
    for position, value in edits:
        content[position] = value
    path = folder / "damaged.safetensors"
    path.write_bytes(content[:cut])
    try:
        weights = read_lora(path)
    except LoraFileError:
        return
    use(weights, folder)


def test_the_models_are_as_before_all_that() -> None:
    assert_same_state(BEFORE, MODELS.components)
    assert random_lora(MODELS.components).rank == 4
