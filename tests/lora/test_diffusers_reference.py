"""A file gives the same outputs through diffusers' ``load_lora_weights`` as through our own loading and patching."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lora_service.lora.files import read_lora, write_lora
from lora_service.lora.patcher import Patcher
from lora_service.lora.scale import Scale
from tests.lora.lora_fakes import is_attention, is_cloneofsimo_target, is_convolution, random_lora
from tests.small_models import FAMILIES, SmallModels, small_models


def pipeline_of(models: SmallModels) -> Any:
    components = {
        "vae": AutoencoderKL(block_out_channels=(8,), norm_num_groups=4),
        "unet": models.unet,
        "text_encoder": models.components["text_encoder"],
        "tokenizer": models.tokenizers["text_encoder"],
        "scheduler": DDIMScheduler(clip_sample=False, steps_offset=1),
    }
    if models.family == "sdxl":
        second = {
            "text_encoder_2": models.components["text_encoder_2"],
            "tokenizer_2": models.tokenizers["text_encoder_2"],
        }
        return StableDiffusionXLPipeline(**components, **second)
    return StableDiffusionPipeline(
        **components, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def outputs(models: SmallModels) -> dict[str, Tensor]:
    texts = {name: models.text_output(component=name) for name in models.components if name != "unet"}
    return {"unet": models.unet_output(), **texts}


def through_diffusers(models: SmallModels, path: Path, scale: float) -> dict[str, Tensor]:
    pipeline = pipeline_of(models)
    pipeline.load_lora_weights(path)
    pipeline.set_adapters(pipeline.get_active_adapters(), scale)
    return outputs(models)


def through_ours(models: SmallModels, path: Path, scale: float) -> dict[str, Tensor]:
    report = Patcher(models.components, models.tokenizers).apply([(read_lora(path), Scale(scale, scale))])
    assert report.unmatched == ()
    return outputs(models)


def assert_same(path: Path, family: str, scale: float = 0.7) -> None:
    base = outputs(small_models(family))
    ours, theirs = through_ours(small_models(family), path, scale), through_diffusers(small_models(family), path, scale)
    for component, output in ours.items():
        assert (output - base[component]).abs().max() > 1e-2, f"nothing happened to {component}"
        torch.testing.assert_close(output, theirs[component], atol=2e-5, rtol=1e-4)


def attention_and_convolutions(path: str, module: nn.Module) -> bool:
    return is_attention(path, module) or (is_convolution(path, module) and "resnets" in path)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lora_format", ["kohya", "diffusers"])
@pytest.mark.parametrize("targets", [is_attention, is_cloneofsimo_target, attention_and_convolutions])
def test_what_we_write_does_the_same_in_diffusers(family: str, lora_format: str, targets: Any, tmp_path: Path) -> None:
    lora = random_lora(small_models(family).components, rank=4, alpha=2.0, targets=targets)
    write_lora(tmp_path / "lora.safetensors", lora, format=lora_format)
    assert_same(tmp_path / "lora.safetensors", family)


def rewritten(path: Path, rename: dict[str, str], *, drop: str | None = None) -> None:
    tensors = load_file(path)
    for old, new in rename.items():
        tensors = {key.replace(old, new): tensor for key, tensor in tensors.items()}
    save_file({key: tensor for key, tensor in tensors.items() if drop is None or drop not in key}, path)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_training_scripts_files_do_the_same_in_diffusers(family: str, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    write_lora(path, random_lora(small_models(family).components), format="diffusers")
    tensors = {}
    for key, tensor in load_file(path).items():
        layer = ".lora." if key.startswith("unet") else ".lora_linear_layer."
        tensors[key.replace(".lora_A.", f"{layer}down.").replace(".lora_B.", f"{layer}up.")] = tensor
    save_file(tensors, path)
    assert_same(path, family)


def test_attention_processors_files_do_the_same_in_diffusers(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    models = small_models("sd1")
    write_lora(path, random_lora({"unet": models.unet}), format="diffusers")
    tensors = {}
    for key, tensor in load_file(path).items():
        attention, _, rest = key.partition(".to_")
        projection = rest.split(".")[0]
        tensors[f"{attention}.processor.to_{projection}_lora.{'down' if 'lora_A' in key else 'up'}.weight"] = tensor
    save_file(tensors, path)
    ours, theirs = through_ours(models, path, 1.0), through_diffusers(small_models("sd1"), path, 1.0)
    torch.testing.assert_close(ours["unet"], theirs["unet"], atol=2e-5, rtol=1e-4)


def test_kohya_files_without_alpha_do_the_same_in_diffusers(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    write_lora(path, random_lora(small_models("sd1").components, alpha=4.0))
    rewritten(path, {}, drop=".alpha")
    assert_same(path, "sd1")


def test_sdxl_files_in_diffusers_block_names_do_the_same_in_diffusers(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    lora = random_lora({"unet": small_models("sdxl").unet})
    tensors = {
        f"lora_unet_{module.replace('.', '_')}.{suffix}": tensor
        for _, module, layer in lora
        for suffix, tensor in layer.tensors.items()
    }
    save_file(tensors, path)
    models = small_models("sdxl")
    ours, theirs = through_ours(models, path, 1.0), through_diffusers(small_models("sdxl"), path, 1.0)
    torch.testing.assert_close(ours["unet"], theirs["unet"], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_diffusers_writes_does_the_same_through_ours(family: str, tmp_path: Path) -> None:
    """Compare a file that holds its adapter's configuration in the header, with a rank that is not alpha."""
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    torch.manual_seed(0)
    models = small_models(family)
    targets = {"unet": ["to_q", "to_v", "to_out.0"], "text_encoder": ["q_proj", "out_proj"]}
    saved: dict[str, Any] = {}
    for component, names in targets.items():
        patterns = {"to_v": 2} if component == "unet" else {}
        config = LoraConfig(r=3, lora_alpha=5, target_modules=names, init_lora_weights=False, alpha_pattern=patterns)
        model = models.components[component]
        model.add_adapter(config)
        saved[f"{component}_lora_layers"] = convert_state_dict_to_diffusers(get_peft_model_state_dict(model))
        saved[f"{component}_lora_adapter_metadata"] = model.peft_config["default"].to_dict()
    theirs = outputs(models)
    pipeline_of(small_models(family)).save_lora_weights(tmp_path, **saved)
    ours = through_ours(small_models(family), tmp_path / "pytorch_lora_weights.safetensors", 1.0)
    for component in targets:
        torch.testing.assert_close(ours[component], theirs[component], atol=2e-5, rtol=1e-4)
