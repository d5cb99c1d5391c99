"""Files are reproducible, whole or absent, hold the strings other tools look for, and are read in any dtype."""

from __future__ import annotations

import base64
import hashlib
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors.torch import save as serialize_tensors

from lora_service.errors import LoraFileError
from lora_service.lora.files import read_lora, write_lora
from lora_service.lora.safetensors_header import read_header
from lora_service.lora.weights import LoraLayer, LoraSubject, LoraWeights
from lora_service.training.adapters.lora_metadata import LoraMetadata, metadata_strings
from tests.errors import raises
from tests.lora.lora_fakes import TOKEN_NAMES, random_lora, raw_file, save
from tests.small_models import small_models

DESCRIPTION = LoraMetadata(
    architecture="stable-diffusion-v1",
    base_version="sd_v1",
    base_name="small",
    title="rex-1",
    subjects=(LoraSubject("rexdog", ()),),
    resolution=(512, 512),
    rank=4,
    alpha=4.0,
    steps=700,
    learning_rate=2e-4,
)


@pytest.fixture
def lora() -> LoraWeights:
    weights = random_lora(small_models("sd1").components, tokens=TOKEN_NAMES)
    return replace(weights, metadata=metadata_strings(DESCRIPTION, "1.2.3"))


def header_of(path: Path) -> tuple[dict[str, str], list[str]]:
    with safe_open(path, "pt") as file:
        return file.metadata(), list(file.keys())


@pytest.mark.parametrize("lora_format", ["kohya", "diffusers", "cloneofsimo", "embedding"])
def test_the_same_lora_gives_the_same_bytes(lora_format: str, lora: LoraWeights, tmp_path: Path) -> None:
    reverse = LoraWeights(
        {component: dict(reversed(layers.items())) for component, layers in reversed(lora.layers.items())},
        lora.embeddings,
        dict(reversed(lora.metadata.items())),
    )
    for number, weights in enumerate((lora, reverse)):
        write_lora(tmp_path / f"{number}.safetensors", weights, format=lora_format)
    assert (tmp_path / "0.safetensors").read_bytes() == (tmp_path / "1.safetensors").read_bytes()


def test_keys_and_header_strings_are_sorted(lora: LoraWeights, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    write_lora(path, lora)
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    strings = header.pop("__metadata__")
    assert list(strings) == sorted(strings)
    assert list(header) == sorted(header)
    assert int.from_bytes(raw[:8], "little") % 8 == 0


def test_a_file_is_fp16_and_its_alphas_are_exact(tmp_path: Path) -> None:
    layer = LoraLayer(torch.ones(3, 4), torch.ones(4, 3), 0.1)
    write_lora(tmp_path / "lora.safetensors", LoraWeights({"unet": {"conv_in": layer}}))
    dtypes = {key.rpartition(".")[2]: tensor.dtype for key, tensor in load_file(tmp_path / "lora.safetensors").items()}
    assert dtypes == {"weight": torch.float16, "alpha": torch.float32}
    assert read_lora(tmp_path / "lora.safetensors").alpha == pytest.approx(0.1)


def test_tokens_stand_in_the_header_as_little_endian_halves(lora: LoraWeights, tmp_path: Path) -> None:
    write_lora(tmp_path / "lora.safetensors", lora)
    strings, keys = header_of(tmp_path / "lora.safetensors")
    assert all(key.startswith("lora_") for key in keys)
    tokens = json.loads(strings["lora_service.tokens"])
    assert list(tokens) == list(TOKEN_NAMES)
    stored = tokens["<s2>"]["text_encoder"]
    values = torch.frombuffer(bytearray(base64.b64decode(stored["data"])), dtype=torch.float16)
    assert stored["shape"] == [32]
    assert torch.equal(values.float(), lora.embeddings["<s2>"]["text_encoder"])


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", "bad_metadata"),
        ("[1]", "bad_metadata"),
        ('{"<s1>": 1}', "bad_metadata"),
        ('{"<s1>": {"text_encoder": {"data": "AAA", "shape": [1]}}}', "bad_metadata"),
        ('{"<s1>": {"text_encoder": {"data": "AAA=", "shape": [2]}}}', "bad_metadata"),
        ('{"<s1>": {"text_encoder": {"data": "AAA=", "shape": [Infinity]}}}', "bad_metadata"),
        ('{"<s1>": {}}', "bad_token"),
        ('{"<s1>": {"vae": {"data": "AAA=", "shape": [1]}}}', "bad_token"),
        ('{"": {"text_encoder": {"data": "AAA=", "shape": [1]}}}', "bad_token"),
        ('{"<s1>": {"text_encoder": {"data": "AH4=", "shape": [1]}}}', "not_finite"),
    ],
)
def test_tokens_that_cannot_be_restored_are_refused(text: str, code: str, tmp_path: Path) -> None:
    tensors = {
        "lora_unet_conv_in.lora_down.weight": torch.ones(1, 4),
        "lora_unet_conv_in.lora_up.weight": torch.ones(4, 1),
    }
    with raises(LoraFileError, code=code):
        read_lora(save(tmp_path / "lora.safetensors", tensors, {"lora_service.tokens": text}))


def test_the_header_tells_other_tools_what_the_file_is(lora: LoraWeights, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    write_lora(path, lora)
    strings, _ = header_of(path)
    data = path.read_bytes()[read_header(path).data_start :]
    assert {key: strings[key] for key in strings if not key.startswith("lora_service")} == {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "rex-1",
        "modelspec.resolution": "512x512",
        "modelspec.trigger_phrase": "rexdog",
        "modelspec.prediction_type": "epsilon",
        "modelspec.hash_sha256": f"0x{hashlib.sha256(data).hexdigest()}",
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "sshs_model_hash": hashlib.sha256(data).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(b"").hexdigest()[:8],
        "ss_sd_model_name": "small",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "4.0",
        "ss_output_name": "rex-1",
        "ss_tag_frequency": '{"subject": {"rexdog": 1}}',
        "ss_steps": "700",
        "ss_learning_rate": "0.0002",
    }
    assert strings["lora_service.version"] == "1.2.3"


def test_strings_of_another_format_do_not_stay_behind(tmp_path: Path) -> None:
    """Guard against alpha keys of kohya beside ``lora_adapter_metadata``, which makes diffusers refuse the file."""
    path = "unet.down_blocks.0.attentions.0.proj_in"
    tensors = {f"{path}.lora_A.weight": torch.ones(2, 4), f"{path}.lora_B.weight": torch.ones(4, 2)}
    strings = {"lora_adapter_metadata": '{"unet.lora_alpha": 4}', "modelspec.title": "kept"}
    lora = read_lora(save(tmp_path / "peft.safetensors", tensors, strings))
    write_lora(tmp_path / "kohya.safetensors", lora)
    assert header_of(tmp_path / "kohya.safetensors")[0] == {"modelspec.title": "kept"}


@pytest.mark.parametrize("rank", [1, 300], ids=["shorter than a MiB", "longer"])
def test_hashes_are_those_that_kohya_computes_and_no_older_ones_stay(rank: int, tmp_path: Path) -> None:
    """Compare with sd-scripts' ``precalculate_safetensors_hashes`` over the tensors as safetensors writes them."""
    lora = random_lora(small_models("sd1").components, rank=rank)
    stale = {"sshs_model_hash": "1" * 64, "sshs_legacy_hash": "2" * 8, "modelspec.hash_sha256": "0x3"}
    strings = metadata_strings(DESCRIPTION, "1") | stale
    write_lora(tmp_path / "lora.safetensors", replace(lora, metadata=strings))
    written, _ = header_of(tmp_path / "lora.safetensors")
    tensors = load_file(tmp_path / "lora.safetensors")
    theirs = serialize_tensors(tensors, {key: text for key, text in written.items() if key.startswith("ss_")})
    data = theirs[8 + int.from_bytes(theirs[:8], "little") :]
    assert written["sshs_model_hash"] == hashlib.sha256(data).hexdigest()
    assert written["sshs_legacy_hash"] == hashlib.sha256(theirs[0x100000:0x110000]).hexdigest()[:8]
    assert written["modelspec.hash_sha256"] == f"0x{written['sshs_model_hash']}"


@pytest.mark.parametrize(
    ("width", "expected"),
    [(768, set()), (1024, {"ss_base_model_version", "ss_v2"}), (2048, {"ss_base_model_version"})],
)
def test_a_converted_file_says_what_a1111_sorts_by(width: int, expected: set[str], tmp_path: Path) -> None:
    layer = LoraLayer(torch.ones(1, width), torch.ones(320, 1), 1.0)
    lora = LoraWeights({"unet": {"down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": layer}})
    write_lora(tmp_path / "lora.safetensors", lora)
    strings = header_of(tmp_path / "lora.safetensors")[0] or {}
    assert {key for key in strings if key.startswith("ss_")} == expected
    assert strings.get("ss_v2") == ("True" if width == 1024 else None)
    assert strings.get("ss_base_model_version", "").startswith("sdxl_") == (width == 2048)


@pytest.mark.parametrize(("version", "v2"), [("sd_v1", "False"), ("sd_v2_v", "True"), ("sdxl_base_v1-0", "False")])
def test_a_trained_file_says_whether_it_is_of_2x(version: str, v2: str) -> None:
    assert metadata_strings(replace(DESCRIPTION, base_version=version), "1")["ss_v2"] == v2


def test_values_that_fp16_cannot_hold_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    layer = LoraLayer(torch.full((1, 4), 1e6), torch.ones(4, 1), 1.0)
    with raises(LoraFileError, code="not_finite"):
        write_lora(tmp_path / "lora.safetensors", LoraWeights({"unet": {"conv_in": layer}}))
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_the_old_file(
    lora: LoraWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lora.safetensors"
    path.write_bytes(b"old")

    def full(self: Path, target: Path) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="no space"):
        write_lora(path, lora)
    assert [file.name for file in tmp_path.iterdir()] == ["lora.safetensors"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_every_dtype_of_a_lora_is_read(dtype: str, tmp_path: Path) -> None:
    dtypes = {
        "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    }  # fmt: skip
    values = torch.tensor([[1.0, 2.0, -0.5]]).to(dtypes[dtype])
    tensors = {"lora_unet_conv_in.lora_down.weight": values, "lora_unet_conv_in.lora_up.weight": torch.ones(2, 1)}
    layer = read_lora(save(tmp_path / "lora.safetensors", tensors)).layers["unet"]["conv_in"]
    assert torch.equal(layer.delta(torch.zeros(2, 3)), torch.tensor([[1.0, 2.0, -0.5]] * 2))


def test_a_tensor_that_begins_anywhere_is_read(tmp_path: Path) -> None:
    """Read a tensor behind three bytes: safetensors does not require alignment."""
    header = {
        "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [3, 11]},
    }
    data = b"abc" + np.array([1.5, -2.0], dtype="<f4").tobytes()
    path = raw_file(tmp_path / "lora.safetensors", {f"bundle_emb.{k}.emb_params": v for k, v in header.items()}, data)
    path_of_one = path.with_name("one.safetensors")
    assert len(read_lora(path).warnings) == 1  # one embedding is not as wide as the other
    header["a"]["shape"], header["b"]["shape"] = [3, 1], [2, 1]
    raw_file(path_of_one, {f"bundle_emb.{k}.emb_params": v for k, v in header.items()}, data)
    embeddings = read_lora(path_of_one).embeddings
    assert [embeddings[name]["text_encoder"].item() for name in ("a", "a_1", "b", "b_1")] == [97, 98, 1.5, -2.0]


def test_a_file_is_held_in_memory_once(tmp_path: Path) -> None:
    down, up = torch.zeros(4, 2**20), torch.zeros(4, 4)
    path = save(
        tmp_path / "lora.safetensors",
        {"lora_unet_conv_in.lora_down.weight": down, "lora_unet_conv_in.lora_up.weight": up},
    )
    tracemalloc.start()
    try:
        lora = read_lora(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert lora.rank == 4
    assert peak < 1.1 * path.stat().st_size


def test_a_checkpoint_is_refused_by_its_header_and_its_tensors_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_service.lora.files.read_tensor_file", lambda *arguments: pytest.fail("tensors are read"))
    with raises(LoraFileError, code="checkpoint"):
        read_lora(save(tmp_path / "lora.safetensors", {"model.diffusion_model.out.2.weight": torch.ones(2, 2)}))


def test_a_header_without_strings_may_say_so(tmp_path: Path) -> None:
    header = {"__metadata__": None, "emb_params": {"dtype": "F16", "shape": [1, 2], "data_offsets": [0, 4]}}
    assert read_lora(raw_file(tmp_path / "cat.safetensors", header, bytes(4))).tokens == ("cat",)


def test_a_dtype_of_no_lora_is_refused(tmp_path: Path) -> None:
    header = {"emb_params": {"dtype": "BOOL", "shape": [1, 2], "data_offsets": [0, 2]}}
    with raises(LoraFileError, code="unsupported_dtype") as caught:
        read_lora(raw_file(tmp_path / "lora.safetensors", header, bytes(2)))
    assert "BOOL" in str(caught.value)
