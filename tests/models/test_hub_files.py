"""Selecting the files of a repository to download, from listings as the published models have them."""

import pytest

from lora_service.errors import BaseModelError
from lora_service.models.hub_files import HubFile, select_files
from tests.errors import raises

SD15 = """
.gitattributes README.md model_index.json v1-5-pruned.ckpt v1-5-pruned-emaonly.safetensors v1-inference.yaml
feature_extractor/preprocessor_config.json
safety_checker/config.json safety_checker/model.safetensors safety_checker/model.fp16.safetensors
safety_checker/pytorch_model.bin
scheduler/scheduler_config.json
text_encoder/config.json text_encoder/model.safetensors text_encoder/model.fp16.safetensors
text_encoder/pytorch_model.bin text_encoder/pytorch_model.fp16.bin
tokenizer/merges.txt tokenizer/special_tokens_map.json tokenizer/tokenizer_config.json tokenizer/vocab.json
unet/config.json unet/diffusion_pytorch_model.bin unet/diffusion_pytorch_model.fp16.bin
unet/diffusion_pytorch_model.fp16.safetensors unet/diffusion_pytorch_model.non_ema.bin
unet/diffusion_pytorch_model.non_ema.safetensors unet/diffusion_pytorch_model.safetensors
vae/config.json vae/diffusion_pytorch_model.bin vae/diffusion_pytorch_model.fp16.safetensors
vae/diffusion_pytorch_model.safetensors
"""
SDXL = """
model_index.json sd_xl_base_1.0.safetensors sd_xl_base_1.0_0.9vae.safetensors 01.png
scheduler/scheduler_config.json
text_encoder/config.json text_encoder/flax_model.msgpack text_encoder/model.fp16.safetensors text_encoder/model.onnx
text_encoder/model.safetensors text_encoder/openvino_model.bin text_encoder/openvino_model.xml
text_encoder_2/config.json text_encoder_2/model.fp16.safetensors text_encoder_2/model.onnx_data
text_encoder_2/model.safetensors
tokenizer/merges.txt tokenizer/special_tokens_map.json tokenizer/tokenizer_config.json tokenizer/vocab.json
tokenizer_2/merges.txt tokenizer_2/special_tokens_map.json tokenizer_2/tokenizer_config.json tokenizer_2/vocab.json
unet/config.json unet/diffusion_flax_model.msgpack unet/diffusion_pytorch_model.fp16.safetensors
unet/diffusion_pytorch_model.safetensors unet/model.onnx unet/model.onnx_data unet/openvino_model.xml
vae/config.json vae/diffusion_pytorch_model.fp16.safetensors vae/diffusion_pytorch_model.safetensors
vae_1_0/config.json vae_1_0/diffusion_pytorch_model.fp16.safetensors vae_decoder/model.onnx vae_encoder/model.onnx
"""
ZIMAGE = """
.gitattributes README.md teaser.jpg model_index.json
scheduler/scheduler_config.json
text_encoder/config.json text_encoder/generation_config.json text_encoder/model-00001-of-00003.safetensors
text_encoder/model-00002-of-00003.safetensors text_encoder/model-00003-of-00003.safetensors
text_encoder/model.safetensors.index.json
tokenizer/chat_template.jinja tokenizer/merges.txt tokenizer/tokenizer.json tokenizer/tokenizer_config.json
tokenizer/vocab.json
transformer/config.json transformer/diffusion_pytorch_model-00001-of-00002.safetensors
transformer/diffusion_pytorch_model-00002-of-00002.safetensors
transformer/diffusion_pytorch_model.safetensors.index.json
vae/config.json vae/diffusion_pytorch_model.safetensors
"""


def selected(listing: str) -> dict[str, str]:
    """Path in the repository -> path in the folder."""
    return {file.path: file.local_path for file in select_files("a/b", (HubFile(name, 1) for name in listing.split()))}


def without(listing: str, *names: str) -> str:
    return " ".join(name for name in listing.split() if name not in names)


def test_of_stable_diffusion_1_5_the_parts_in_half_precision_are_taken_and_no_safety_checker() -> None:
    assert sorted(selected(SD15)) == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.fp16.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    ]
    assert selected(SD15)["unet/diffusion_pytorch_model.fp16.safetensors"] == "unet/diffusion_pytorch_model.safetensors"


def test_of_xl_both_text_encoders_are_taken_and_one_vae() -> None:
    weights = {path for path in selected(SDXL) if not path.endswith((".json", ".txt"))}
    assert weights == {
        "text_encoder/model.fp16.safetensors",
        "text_encoder_2/model.fp16.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    }
    assert {"tokenizer_2/vocab.json", "tokenizer_2/merges.txt", "text_encoder_2/config.json"} < set(selected(SDXL))


def test_a_part_without_half_precision_is_taken_in_full() -> None:
    listing = without(SD15, "vae/diffusion_pytorch_model.fp16.safetensors")
    assert {path for path in selected(listing) if path.startswith("vae")} == {
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    }


def test_weights_in_several_files_come_with_their_index() -> None:
    shards = [f"unet/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    half, full = (f"unet/diffusion_pytorch_model{variant}.safetensors" for variant in (".fp16", ""))
    listing = " ".join([without(SD15, half, full), *shards, index])
    assert {path for path in selected(listing) if path.startswith("unet")} == {"unet/config.json", *shards, index}
    # one file is better, and then the index would point at what is not there
    assert index not in selected(f"{SD15} {' '.join(shards)} {index}")


@pytest.mark.parametrize(
    ("listing", "code", "missing"),
    [
        (without(SD15, "model_index.json"), "unsupported_layout", "model_index.json"),
        ("model_index.json transformer/config.json scheduler/scheduler_config.json", "unsupported_model", "tokenizer"),
        (
            without(SD15, "unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.safetensors"),
            "no_safetensors",
            "unet",
        ),
    ],
)
def test_a_repository_that_cannot_be_used_is_refused_with_the_reason(listing: str, code: str, missing: str) -> None:
    with raises(BaseModelError, code=code) as caught:
        selected(listing)
    assert "'a/b'" in str(caught.value)
    assert missing in str(caught.value)


def test_of_a_transformer_all_shards_and_the_chat_template_are_taken() -> None:
    left_out = {".gitattributes", "README.md", "teaser.jpg"}
    assert set(selected(ZIMAGE)) == set(ZIMAGE.split()) - left_out


def test_a_repository_without_a_backbone_is_no_base() -> None:
    listing = " ".join(name for name in ZIMAGE.split() if not name.startswith("transformer/"))
    with raises(BaseModelError, code="unsupported_model") as caught:
        selected(listing)
    assert "'transformer'" in str(caught.value)
