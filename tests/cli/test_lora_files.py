"""``inspect`` and ``convert`` on the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from lora_service.cli.lora_files import (
    compare_command,
    convert_command,
    inspect_command,
    merge_command,
    resize_command,
)
from lora_service.errors import InputError, LoraFileError
from lora_service.lora.files import FORMAT_NAMES, read_lora, write_lora
from lora_service.lora.lycoris import DoraLayer
from lora_service.lora.summary import as_text, summarize
from lora_service.lora.weights import LoraLayer, LoraWeights
from tests.errors import raises
from tests.lora.lora_fakes import TOKEN_NAMES, assert_same_changes, is_cloneofsimo_target, random_lora, save
from tests.small_models import small_models

STRINGS = {
    "modelspec.trigger_phrase": "rexdog",
    "modelspec.thumbnail": "data:image/jpeg;base64," + "A" * 4000,
    "modelspec.title": "a \x1b[31mred\x1b[0m title",
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    lora = random_lora(small_models("sd1").components, targets=is_cloneofsimo_target, tokens=TOKEN_NAMES)
    write_lora(tmp_path / "rex.safetensors", replace(lora, metadata=STRINGS))
    return tmp_path / "rex.safetensors"


def run(command: object, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)


def test_inspect_prints_one_object_for_programs(file: Path) -> None:
    printed = json.loads(run(inspect_command, file, "--json").output)
    assert printed["layout"] == "kohya"
    assert printed["base"] == "a base with a cross_attention_dim of 32"
    assert (printed["rank"], printed["alpha"]) == (4, 4.0)
    assert printed["modules"] == {"unet": 54, "text_encoder": 8}
    assert printed["tokens"] == ["<s1>", "<s2>"]
    assert printed["trigger"] == "rexdog"
    assert printed["thumbnail"] == "jpeg, 3 kB"
    assert printed["metadata"]["modelspec.title"] == STRINGS["modelspec.title"]


def test_inspect_names_a_base_of_its_own_shapes_by_the_header(file: Path) -> None:
    write_lora(file, replace(read_lora(file), metadata={"ss_sd_model_name": "the embedded base"}))
    assert json.loads(run(inspect_command, file, "--json").output)["base"] == "the embedded base"


def test_inspect_prints_lines_with_bars_for_people(file: Path) -> None:
    text = run(inspect_command, file).output
    for expected in (
        "kohya",
        "unet 54, text_encoder 8",
        "<s1> <s2>",
        "rexdog",
        "jpeg, 3 kB",
        "unet down_blocks.0",
        "█",
    ):
        assert expected in text
    assert "\x1b" not in text
    assert "AAAA" not in text


def test_the_size_of_the_change_is_that_of_the_product() -> None:
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(3, 6, generator=generator), torch.randn(5, 3, generator=generator)
    layers = {"down_blocks.1.a": LoraLayer(down, up, 6.0), "down_blocks.1.b": LoraLayer(down, up, 3.0)}
    change = summarize(LoraWeights({"unet": layers})).change
    product = (up @ down).norm().item()
    assert change == {"unet down_blocks.1": pytest.approx((4 + 1) ** 0.5 * product, rel=1e-5)}


def test_blocks_stand_in_the_order_of_the_model() -> None:
    layer = LoraLayer(torch.ones(1, 2), torch.ones(2, 1), 1.0)
    paths = ("up_blocks.10.x", "mid_block.x", "up_blocks.2.x", "down_blocks.1.x", "conv_in", "down_blocks.0.x")
    lora = LoraWeights({"text_encoder": {"encoder.layers.3.x": layer}, "unet": dict.fromkeys(paths, layer)})
    assert list(summarize(lora).change) == [
        "unet down_blocks.0", "unet down_blocks.1", "unet mid_block", "unet up_blocks.2", "unet up_blocks.10",
        "unet conv_in", "text_encoder layers.3",
    ]  # fmt: skip


def test_a_block_with_a_digit_that_is_no_number_is_shown() -> None:
    layer = LoraLayer(torch.ones(1, 2), torch.ones(2, 1), 1.0)
    assert "²" in as_text(summarize(LoraWeights({"unet": {".²": layer}})))


def test_a_change_that_depends_on_the_base_has_no_bar() -> None:
    layer = DoraLayer(LoraLayer(torch.ones(1, 2), torch.ones(2, 1), 1.0), torch.ones(2, 1))
    text = as_text(summarize(LoraWeights({"unet": {"mid_block.x": layer}})))
    assert "DoRA over LoRA" in text
    assert "unet mid_block depends on the base's weights" in text


def test_a_file_of_tokens_only_has_no_bars(tmp_path: Path) -> None:
    text = run(inspect_command, save(tmp_path / "cat.safetensors", {"emb_params": torch.ones(1, 768)})).output
    assert "learned tokens only" in text
    assert "Stable Diffusion 1.x" in text
    assert "by block" not in text


@pytest.mark.parametrize("lora_format", ["kohya", "diffusers", "cloneofsimo"])
def test_convert_writes_the_same_changes_beside_the_file(lora_format: str, file: Path) -> None:
    output = run(convert_command, file, "--to", lora_format).output
    target = file.with_name(f"rex-{lora_format}.safetensors")
    assert str(target) in output
    assert read_lora(target).format == lora_format
    assert_same_changes(read_lora(file), read_lora(target))
    assert read_lora(target).trigger == "rexdog"


def test_convert_writes_where_it_is_told_and_keeps_full_precision_if_told(file: Path, tmp_path: Path) -> None:
    target = tmp_path / "other.safetensors"
    run(convert_command, file, "--to", "diffusers", "-o", target, "--dtype", "float32")
    assert {layer.down.dtype for _, _, layer in read_lora(target)} == {torch.float32}


def test_convert_overwrites_a_file_only_when_forced_and_never_its_input(file: Path) -> None:
    target, before = file.with_name("rex-kohya.safetensors"), file.read_bytes()
    run(convert_command, file, "--to", "kohya")
    with raises(InputError, field="--output", code="exists"):
        run(convert_command, file, "--to", "diffusers", "-o", target)
    run(convert_command, file, "--to", "diffusers", "-o", target, "--force")
    assert read_lora(target).format == "diffusers"
    run(convert_command, file, "--to", "kohya")
    assert read_lora(file.with_name("rex-kohya-2.safetensors")).format == "kohya"
    with raises(InputError, field="--output", code="is_input"):
        run(convert_command, file, "--to", "kohya", "-o", file, "--force")
    assert file.read_bytes() == before


def test_convert_makes_the_folder_that_it_is_told(file: Path, tmp_path: Path) -> None:
    run(convert_command, file, "--to", "kohya", "-o", tmp_path / "nodir" / "x.safetensors")
    assert (tmp_path / "nodir" / "x.safetensors").exists()


def test_every_format_that_can_be_written_can_be_asked_for() -> None:
    option = next(parameter for parameter in convert_command.params if parameter.name == "lora_format")
    assert tuple(option.type.choices) == FORMAT_NAMES


def test_a_file_that_is_no_lora_is_an_error_of_one_sentence(tmp_path: Path) -> None:
    page = tmp_path / "page.safetensors"
    page.write_text("<html>Sign in</html>")
    with raises(LoraFileError, code="web_page"):
        run(inspect_command, page)


def test_merge_adds_two_files(file: Path, tmp_path: Path) -> None:
    target = tmp_path / "sum.safetensors"
    text = run(merge_command, f"{file}@0.75", f"{file}@0.25", "-o", target).output
    assert f"{target}: 2 LoRAs, rank 8" in text
    merged, lora = read_lora(target), read_lora(file)
    for component, path, layer in lora:
        weight = torch.zeros(layer.shape)
        torch.testing.assert_close(
            merged.layers[component][path].delta(weight), layer.delta(weight), atol=1e-3, rtol=1e-2
        )
    assert merged.trigger == "rexdog"
    assert merged.metadata["modelspec.title"] == "sum"


def test_merge_to_a_rank_tells_what_is_lost(file: Path, tmp_path: Path) -> None:
    text = run(merge_command, file, file, "--rank", 4, "-o", tmp_path / "sum.safetensors").output
    assert "rank 4, 0.00% of the change lost" in text


def test_resize_writes_beside_the_file_and_tells_what_is_lost(file: Path) -> None:
    text = run(resize_command, file, "--rank", 2).output
    target = file.with_name("rex-r2.safetensors")
    assert f"{target}: rank 2 from 4, " in text
    assert read_lora(target).rank == 2
    assert read_lora(target).tokens == ("<s1>", "<s2>")


@pytest.mark.parametrize(
    ("command", "options"), [(merge_command, ()), (resize_command, ("--rank", 2))], ids=["merge", "resize"]
)
def test_files_are_not_overwritten_unless_forced(command: object, options: tuple, file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"kept")
    with raises(InputError, field="--output"):
        run(command, file, *options, "-o", other)
    for force in ((), ("--force",)):
        with raises(InputError, field="--output"):
            run(command, file, *options, "-o", file, *force)
    with raises(InputError, field="--output", code="not_writable"):
        run(command, file, *options, "-o", "/proc/nowhere/a.safetensors")
    assert other.read_bytes() == b"kept"
    run(command, file, *options, "-o", other, "--force")
    assert read_lora(other).trigger == "rexdog"


def test_compare_shows_each_block_and_all(file: Path, tmp_path: Path) -> None:
    run(resize_command, file, "--rank", 2, "-o", tmp_path / "small.safetensors")
    text = run(compare_command, file, tmp_path / "small.safetensors").output
    assert [line.split("  ")[0] for line in text.splitlines()][-1] == "all"
    assert "unet down_blocks.0" in text
    blocks = json.loads(run(compare_command, file, file, "--json").output)
    assert blocks["all"]["cosine"] == pytest.approx(1, abs=1e-4)
    assert blocks["all"]["distance"] == pytest.approx(0, abs=1e-2)
    assert blocks["all"]["norms"][0] == blocks["all"]["norms"][1]


def test_what_of_a_file_was_left_out_is_shown(tmp_path: Path) -> None:
    lora = random_lora({"unet": small_models("sd1").unet})
    tensors = {f"unet.{path}.{suffix}": t for _, path, layer in lora for suffix, t in layer.tensors.items()}
    path = save(tmp_path / "lora.safetensors", tensors | {"bundle_emb.cat.clip_l_out": torch.ones(1, 4)})
    assert "clip_l_out" in run(inspect_command, path).output
    assert "clip_l_out" in run(convert_command, path, "--to", "kohya").stderr
