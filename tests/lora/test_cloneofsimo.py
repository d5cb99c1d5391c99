"""Files of the original lora_pti do what they did with it, in both dialects, and it can use what we write."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.random_models import bare_text_encoder, bare_unet
from lora_service.errors import LoraFileError
from lora_service.lora.files import read_lora, write_lora
from lora_service.lora.formats.cloneofsimo import NEW_ORDER, OLD_ORDER, standard_order
from lora_service.lora.patcher import Patcher
from lora_service.lora.scale import Scale
from lora_service.lora.weights import LoraLayer, LoraWeights
from tests.errors import raises
from tests.lora.lora_fakes import (
    TOKEN_NAMES,
    assert_same_changes,
    assert_same_state,
    is_cloneofsimo_target,
    random_lora,
    save,
    state_of,
)
from tests.lora.original_lora_pti import (
    EXTENDED_UNET_CLASSES,
    TEXT_ENCODER_CLASSES,
    UNET_CLASSES,
    OriginalLora,
    find_modules,
    loaded_pairs,
    patched,
    register_as_diffusers_0_14,
    small_sd15_unet,
)
from tests.small_models import small_models

ORDERS = Path(__file__).resolve().parents[2] / "../shared/data/golden/cloneofsimo_order.json"
CLASSES = {"plain": UNET_CLASSES, "extended": EXTENDED_UNET_CLASSES}
DIALECTS = [(dialect, form) for dialect in ("old", "new") for form in CLASSES]
# SHA-256 of the module paths, one a line, in the order in which the original itself numbered those of a model of
# Stable Diffusion 1.5's shape: with diffusers 0.14 and transformers 4.28 (old), diffusers 0.42 and transformers 5.23.
RECORDED_ORDERS = {
    ("old", "plain"): "15c4cf875b1a258311c4a97ead89d641bb8bcb93c93c0cb7520fa5c699b2101b",
    ("old", "extended"): "994260725cd918ebefed4a208fc8605ad039ea4a7510a407f97887570a64d5a7",
    ("new", "plain"): "61dcf4dc781422cce5385ef518e90d4e99e57ebbc59bcda1bfb8d56e02c7e079",
    ("new", "extended"): "9a0800da02f29196af2b102ae738f57628463ea0ffefceae96f2f0c84aff6ef7",
}
RECORDED_TEXT_ENCODER_ORDER = "d2c1c35dc84552448ea16c5f06590781ba2995308ba80df6a863107398558d68"
TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}


def sha256_of_lines(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def full_size_modules(dialect: str, form: str) -> dict[str, nn.Module]:
    """Return module path -> module on the meta device, in the order of the numbers."""
    unet = bare_unet()
    if dialect == "old":
        register_as_diffusers_0_14(unet)
    return dict(find_modules(unet, CLASSES[form]))


def full_size_text_encoder_paths() -> list[str]:
    paths = [path for path, _ in find_modules(bare_text_encoder(), TEXT_ENCODER_CLASSES)]
    return [f"text_model.{path.removeprefix('text_model.')}" for path in paths]


@pytest.mark.parametrize(("dialect", "form"), DIALECTS)
def test_the_reference_numbers_modules_as_the_original_did(dialect: str, form: str) -> None:
    paths = list(full_size_modules(dialect, form))
    assert len(paths) == {"plain": 144, "extended": 224}[form]
    assert sha256_of_lines(paths) == RECORDED_ORDERS[dialect, form]


def test_the_reference_numbers_the_text_encoder_as_the_original_did() -> None:
    paths = full_size_text_encoder_paths()
    assert len(paths) == 48
    assert sha256_of_lines(paths) == RECORDED_TEXT_ENCODER_ORDER


@pytest.mark.skipif(not ORDERS.is_file(), reason="the original's module order is not beside the repository")
def test_the_recorded_orders_are_those_of_the_original() -> None:
    known = json.loads(ORDERS.read_text())
    keys = {
        ("old", "plain"): "unet",
        ("old", "extended"): "unet_extended",
        ("new", "plain"): "unet_modern_diffusers",
        ("new", "extended"): "unet_extended_modern_diffusers",
    }
    for (dialect, form), key in keys.items():
        paths = [known[key][str(number)] for number in range(len(known[key]))]
        assert paths == list(full_size_modules(dialect, form))
    text_encoder = [known["text_encoder"][str(number)] for number in range(len(known["text_encoder"]))]
    assert text_encoder == full_size_text_encoder_paths()


@pytest.mark.parametrize(("dialect", "form"), DIALECTS)
def test_full_size_files_of_both_dialects_are_recognised_by_shape(dialect: str, form: str, tmp_path: Path) -> None:
    """Read a file of rank 1 whose factors hold the module's number."""
    modules = full_size_modules(dialect, form)
    tensors = {}
    for number, module in enumerate(modules.values()):
        out_channels, in_channels, *kernel = module.weight.shape
        tensors[f"unet:{number}:down"] = torch.full((1, in_channels, *kernel), 1.0)
        tensors[f"unet:{number}:up"] = torch.full((out_channels, 1, *[1] * len(kernel)), float(number))
    lora = read_lora(save(tmp_path / "lora.safetensors", tensors))
    assert {path: layer.up.flatten()[0].item() for path, layer in lora.layers["unet"].items()} == {
        path: float(number) for number, path in enumerate(modules)
    }


def test_the_text_encoder_is_numbered_key_value_query_output(tmp_path: Path) -> None:
    paths = full_size_text_encoder_paths()
    tensors = {}
    for number in range(len(paths)):
        tensors[f"text_encoder:{number}:down"] = torch.ones(1, 4)
        tensors[f"text_encoder:{number}:up"] = torch.full((4, 1), float(number))
    lora = read_lora(save(tmp_path / "lora.safetensors", tensors))
    assert {f"text_model.{path}": layer.up[0, 0].item() for path, layer in lora.layers["text_encoder"].items()} == {
        path: float(number) for number, path in enumerate(paths)
    }


@torch.no_grad()
def unet_output(unet: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    sample, text = (torch.randn(shape, generator=generator) for shape in ((1, 4, 8, 8), (1, 7, 32)))
    return unet(sample, 500, text).sample


@pytest.mark.parametrize(("dialect", "form"), DIALECTS)
def test_a_unet_draws_as_the_original_patched_it(dialect: str, form: str, tmp_path: Path) -> None:
    unet = small_sd15_unet()
    if dialect == "old":
        register_as_diffusers_0_14(unet)
    original = OriginalLora()
    original.train("unet", unet, CLASSES[form])
    lora = read_lora(original.save(tmp_path / "lora.safetensors"))
    before, base = state_of({"unet": unet}), unet_output(unet)
    patcher = Patcher({"unet": unet}, {})
    for scale in (0.5, 1.0):
        with patched(unet, CLASSES[form], original.pairs["unet"], scale):
            expected = unet_output(unet)
        assert (expected - base).abs().max() > 1e-3
        report = patcher.apply([(lora, Scale(scale, 0.0))])
        assert report.matched == {"unet": len(original.pairs["unet"])}
        torch.testing.assert_close(unet_output(unet), expected, **TOLERANCE)
        patcher.restore()
        assert_same_state(before, {"unet": unet})


@torch.no_grad()
def test_a_text_encoder_reads_prompts_with_learned_tokens_as_the_original_patched_it(tmp_path: Path) -> None:
    models, reference = small_models("sd1"), small_models("sd1")
    encoder, tokenizer = reference.components["text_encoder"], reference.tokenizers["text_encoder"]
    generator = torch.Generator().manual_seed(0)
    original = OriginalLora(tokens={name: torch.randn(32, generator=generator) for name in TOKEN_NAMES})
    original.train("text_encoder", encoder, TEXT_ENCODER_CLASSES)
    # apply_learned_embed_in_clip: a row at the end of the embedding table for each token that the tokenizer gets.
    tokenizer.add_tokens(list(TOKEN_NAMES))
    encoder.resize_token_embeddings(len(tokenizer))
    for name, row in original.tokens.items():
        encoder.get_input_embeddings().weight.data[tokenizer.convert_tokens_to_ids(name)] = row

    patcher = Patcher(models.components, models.tokenizers)
    lora = read_lora(original.save(tmp_path / "lora.safetensors"))
    for scale in (0.5, 1.0):
        patcher.apply([(lora, Scale(0.0, scale))])
        for prompt in ("a photo of <s1><s2>", "<s2> on the beach", "a dog"):
            ids = tokenizer(prompt, return_tensors="pt").input_ids
            assert patcher.tokenizers["text_encoder"](prompt).input_ids == ids[0].tolist()
            with patched(encoder, TEXT_ENCODER_CLASSES, original.pairs["text_encoder"], scale):
                expected = encoder(ids).last_hidden_state
            output = models.components["text_encoder"](ids).last_hidden_state
            torch.testing.assert_close(output, expected, **TOLERANCE)


@pytest.mark.parametrize("form", CLASSES)
def test_the_original_draws_the_same_with_what_we_write(form: str, tmp_path: Path) -> None:
    unet = small_sd15_unet()
    register_as_diffusers_0_14(unet)
    numbered = dict(find_modules(unet, CLASSES[form]))
    lora = random_lora({"unet": unet}, alpha=2.0, targets=lambda path, _: path in numbered)
    write_lora(tmp_path / "lora.safetensors", lora, format="cloneofsimo")
    pairs = loaded_pairs(load_file(tmp_path / "lora.safetensors"), "unet")
    with patched(unet, CLASSES[form], pairs, 0.8):
        expected = unet_output(unet)
    Patcher({"unet": unet}, {}).apply([(lora, Scale(0.8, 0.8))])
    torch.testing.assert_close(unet_output(unet), expected, **TOLERANCE)


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_a_lora_of_a_base_of_another_build_is_written_and_read_back(family: str, tmp_path: Path) -> None:
    lora = random_lora(small_models(family).components, alpha=2.0, targets=is_cloneofsimo_target, tokens=TOKEN_NAMES)
    write_lora(tmp_path / "lora.safetensors", lora, format="cloneofsimo")
    reread = read_lora(tmp_path / "lora.safetensors")
    assert reread.format == "cloneofsimo"
    assert_same_changes(lora, reread)


def test_shapes_of_neither_order_are_refused(tmp_path: Path) -> None:
    tensors = {
        f"unet:{number}:{factor}": torch.ones(4, 1) if factor == "up" else torch.ones(1, 4)
        for number in range(144)
        for factor in ("up", "down")
    }
    with raises(LoraFileError, code="unknown_order"):
        read_lora(save(tmp_path / "lora.safetensors", tensors))


@pytest.mark.parametrize(("numbers", "code"), [(range(7), "unknown_order"), ([0, 2], "bad_numbering")])
def test_numbers_that_mean_nothing_are_refused(numbers, code: str, tmp_path: Path) -> None:
    tensors = {f"unet:{number}:{factor}": torch.ones(2, 2) for number in numbers for factor in ("up", "down")}
    with raises(LoraFileError, code=code):
        read_lora(save(tmp_path / "lora.safetensors", tensors))


def test_a_lora_that_leaves_modules_of_a_known_base_out_cannot_be_written(tmp_path: Path) -> None:
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    lora = LoraWeights({"unet": {path: LoraLayer(torch.ones(1, 768), torch.ones(320, 1), 1.0)}})
    with raises(LoraFileError, code="unsupported_by_format") as caught:
        write_lora(tmp_path / "lora.safetensors", lora, format="cloneofsimo")
    assert "144" in str(caught.value)


def test_a_module_without_a_number_cannot_be_written(tmp_path: Path) -> None:
    lora = LoraWeights({"unet": {"conv_in": LoraLayer(torch.ones(1, 4, 3, 3), torch.ones(8, 1, 1, 1), 1.0)}})
    with raises(LoraFileError, code="unsupported_by_format") as caught:
        write_lora(tmp_path / "lora.safetensors", lora, format="cloneofsimo")
    assert "unet.conv_in" in str(caught.value)


def test_a_second_text_encoder_cannot_be_written(tmp_path: Path) -> None:
    lora = random_lora(small_models("sdxl").components, targets=is_cloneofsimo_target)
    with raises(LoraFileError, code="unsupported_by_format") as caught:
        write_lora(tmp_path / "lora.safetensors", lora, format="cloneofsimo")
    assert "second text encoder" in str(caught.value)


def test_both_orders_have_each_module_once() -> None:
    for extended, count in ((False, 144), (True, 224)):
        orders = [list(standard_order(order, extended)) for order in (OLD_ORDER, NEW_ORDER)]
        assert [len(set(order)) for order in orders] == [count, count]
        assert set(orders[0]) == set(orders[1])
