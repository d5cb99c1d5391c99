"""Loads a base from a single-file checkpoint in the original model's layout, of any fine-tuned model of the families.

``configs/`` holds what a checkpoint does not: a folder for each family, with diffusers' configurations of the published
model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import CLIPTokenizer

from lora_service.models.components import INPAINTING_CHANNELS, Components, check_channels, unusable
from lora_service.models.families.stable_diffusion import StableDiffusion
from lora_service.models.registry import FAMILIES, family_of_file
from lora_service.models.single_transformer import load_transformer_file
from lora_service.settings import Settings

CONFIGS = Path(__file__).parent / "configs"
TOKENIZER_ID = "openai/clip-vit-large-patch14"
"""The tokenizer of all families; a checkpoint holds none."""

Shapes = Mapping[str, tuple[int, ...]]

_UNET = "model.diffusion_model."
_CONV_IN = f"{_UNET}input_blocks.0.0.weight"
_BY_TEXT_WIDTH = {family.text_width: family for family in FAMILIES if isinstance(family, StableDiffusion)}
_REFINER_WIDTH = 1280

_OTHER_MODELS = {
    "lora_": "is a LoRA, not a base",
    f"{_UNET}joint_blocks.": "is a Stable Diffusion 3",
    f"{_UNET}double_blocks.": "is a Flux",
    "double_blocks.": "is a Flux",
    "down_blocks.": "holds a UNet alone, in diffusers' layout",
    "first_stage_model.": "holds a VAE alone",
    "decoder.": "holds a VAE alone",
    "control_model.": "is a ControlNet",
}
"""Files that are no base, by the prefix of one of their keys; the first match counts."""


def load_single_file(
    path: Path, name: str, dtype: torch.dtype, settings: Settings, device: torch.device | None
) -> Components:
    """Load the models in the file ``path``: a transformer and its parts as `load_folder` does, others on the host.

    Raises:
        BaseModelError: it is no Stable Diffusion 1.x, 2.x or XL base and no transformer of the other families, or there
            is no tokenizer for it.
        OSError, ValueError, KeyError, SafetensorError: it cannot be read.
    """
    import diffusers

    shapes, metadata = _read_header(path, name)
    if transformer_family := family_of_file(path):
        return load_transformer_file(path, transformer_family, name, dtype, settings, device)
    family = detect_family(name, shapes)
    config = CONFIGS / next(iter(family.bases))
    pipeline_class = json.loads((config / "model_index.json").read_text())["_class_name"]
    tokenizers = load_tokenizers(family, path, name, settings)
    options: dict[str, Any] = {
        encoder.replace("text_encoder", "tokenizer"): tokenizer for encoder, tokenizer in tokenizers.items()
    }
    options["scheduler"] = diffusers.DDIMScheduler.from_config(scheduler_config(config, shapes, metadata))
    options |= {**family.loading_options(), "config": str(config), "dtype": dtype, "local_files_only": True}
    channels = shapes[_CONV_IN][1]
    if channels == INPAINTING_CHANNELS:  # unlike the family's config
        options["unet"] = diffusers.UNet2DConditionModel.from_single_file(
            str(path), config=str(config), subfolder="unet", dtype=dtype, local_files_only=True, in_channels=channels
        )
    pipeline = getattr(diffusers, pipeline_class).from_single_file(str(path), **options)
    return Components.from_pipeline(pipeline, family)


def _read_header(path: Path, name: str) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Return the tensors' shapes by key, and the header's metadata."""
    if path.suffix != ".safetensors":
        reason = "is no .safetensors file (pickled checkpoints can run code when they are read)"
        raise unusable(name, reason, code="not_safetensors")
    with safe_open(str(path), framework="pt") as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


def detect_family(name: str, shapes: Shapes) -> StableDiffusion:
    """Return the family of a checkpoint, by the shapes of its UNet's first convolution and cross-attention.

    Raises:
        BaseModelError: it belongs to no family, or is no base.
    """
    conv_in = shapes.get(_CONV_IN)
    width = next((shape[1] for key, shape in shapes.items() if key.endswith("attn2.to_k.weight")), None)
    if conv_in is None or width is None:
        reasons = (reason for prefix, reason in _OTHER_MODELS.items() if any(key.startswith(prefix) for key in shapes))
        raise unusable(name, next(reasons, "holds no Stable Diffusion"))
    check_channels(name, conv_in[1])
    if width == _REFINER_WIDTH:
        raise unusable(name, "is Stable Diffusion XL's refiner, which has only one text encoder")
    if width not in _BY_TEXT_WIDTH:
        raise unusable(name, f"belongs to no supported family (its cross-attention is {width} wide)")
    return _BY_TEXT_WIDTH[width]


def scheduler_config(config: Path, shapes: Shapes, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the family's scheduler config, with the checkpoint's own prediction type and noise schedule.

    Fine-tuned XL checkpoints with v-prediction are marked by an empty tensor ``v_pred``, those with zero terminal SNR
    by ``ztsnr``; others have ModelSpec's strings in the header. 2.x checkpoints without a mark are taken for the
    768-pixel model, which predicts v; for the 512-pixel one, a file of defaults beside the checkpoint sets epsilon.
    """
    scheduler: dict[str, Any] = json.loads((config / "scheduler" / "scheduler_config.json").read_text())
    prediction = metadata.get("modelspec.prediction_type", "")
    if "v_pred" in shapes or prediction == "v":
        scheduler["prediction_type"] = "v_prediction"
    elif prediction == "epsilon" or "v2-512" in metadata.get("modelspec.architecture", ""):
        scheduler["prediction_type"] = "epsilon"
    if "ztsnr" in shapes:
        # Sampling must then begin at the last timestep (https://arxiv.org/abs/2305.08891, section 3.3).
        scheduler |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return scheduler


def load_tokenizers(family: StableDiffusion, path: Path, name: str, settings: Settings) -> dict[str, CLIPTokenizer]:
    """Load the tokenizer of each text encoder, from a folder ``tokenizer`` beside the file, else from the hub.

    Raises:
        BaseModelError: neither has one.
    """
    folder = path.with_name("tokenizer")
    source = folder if folder.is_dir() else TOKENIZER_ID
    options = {"cache_dir": settings.model_cache, "token": settings.hf_token.get_secret_value() or None}
    try:
        return {
            encoder: CLIPTokenizer.from_pretrained(source, **options, **({"pad_token": pad} if pad else {}))
            for encoder, pad in family.pad_tokens.items()
        }
    except OSError as error:
        raise unusable(
            name,
            f"is a single file, which holds no tokenizer, and that of {source} could not be loaded; put the "
            "vocab.json and merges.txt of any Stable Diffusion's tokenizer into a folder named tokenizer beside it",
            code="missing_tokenizer",
        ) from error
