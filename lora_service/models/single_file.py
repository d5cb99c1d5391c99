"""Loads a base from a single-file checkpoint in the original model's layout, of any fine-tuned model of the families.

What a checkpoint does not say of itself is in ``configs/``: one folder per family with diffusers' configurations of
the published models' parts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import CLIPTokenizer

from lora_service.models.components import Components, refusal, refuse_channels
from lora_service.settings import Settings

CONFIGS = Path(__file__).parent / "configs"
TOKENIZER_ID = "openai/clip-vit-large-patch14"
"""All families read by this model's vocabulary; a checkpoint holds none."""

Shapes = Mapping[str, tuple[int, ...]]

_UNET = "model.diffusion_model."
_SECOND_PADS = "!"
"""OpenCLIP pads with id 0, which is this character."""


@dataclass(frozen=True)
class SingleFileFamily:
    """A family as its checkpoints show it: name of its folder in ``configs/``, and each tokenizer's padding."""

    name: str
    pads: Mapping[str, str | None]


SD1 = SingleFileFamily("sd15", {"text_encoder": None})
SD2 = SingleFileFamily("sd21", {"text_encoder": _SECOND_PADS})
XL = SingleFileFamily("sdxl", {"text_encoder": None, "text_encoder_2": _SECOND_PADS})
_BY_TEXT_WIDTH = {768: SD1, 1024: SD2, 2048: XL}
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
"""By how one of the keys begins, first match first."""


def load_single_file(path: Path, name: str, dtype: torch.dtype, settings: Settings) -> Components:
    """The parts that ``path`` holds, on the CPU.

    Raises:
        BaseModelError: it is no Stable Diffusion 1.x, 2.x or XL base, or its tokenizer is nowhere to be had.
        OSError, ValueError, KeyError, SafetensorError: it cannot be read.
    """
    import diffusers

    shapes, metadata = _header(path, name)
    family = family_of(name, shapes)
    config = CONFIGS / family.name
    kind = json.loads((config / "model_index.json").read_text())["_class_name"]
    tokenizers = tokenizers_for(family, path, name, settings)
    given = {encoder.replace("text_encoder", "tokenizer"): found for encoder, found in tokenizers.items()}
    given["scheduler"] = diffusers.DDIMScheduler.from_config(schedule_of(config, shapes, metadata))
    if family is not XL:
        given |= {"safety_checker": None, "requires_safety_checker": False}
    pipeline = getattr(diffusers, kind).from_single_file(
        str(path), config=str(config), dtype=dtype, local_files_only=True, **given
    )
    return Components.of(pipeline)


def family_of(name: str, shapes: Shapes) -> SingleFileFamily:
    """The family of a checkpoint, told by the shapes of its UNet's first convolution and text attention.

    Raises:
        BaseModelError: it is of none, or not a base.
    """
    first = shapes.get(f"{_UNET}input_blocks.0.0.weight")
    width = next((shape[1] for key, shape in shapes.items() if key.endswith("attn2.to_k.weight")), None)
    if first is None or width is None:
        known = (what for start, what in _OTHER_MODELS.items() if any(key.startswith(start) for key in shapes))
        raise refusal(name, next(known, "holds no Stable Diffusion"))
    refuse_channels(name, first[1])
    if width == _REFINER_WIDTH:
        raise refusal(name, "is Stable Diffusion XL's refiner, which reads with one text encoder")
    if width not in _BY_TEXT_WIDTH:
        raise refusal(name, f"is of no known family (a text width of {width})")
    return _BY_TEXT_WIDTH[width]


def schedule_of(config: Path, shapes: Shapes, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The family's noise schedule, with what the checkpoint says of its own.

    Fine-tuned XL checkpoints that predict v have an empty tensor ``v_pred`` to say so, and ``ztsnr`` where the last
    step has no signal left; others have ModelSpec's strings in the header. 2.x checkpoints without any are taken for
    the 768-pixel model, which predicts v: for the 512-pixel one a recipe beside the file says epsilon.
    """
    schedule: dict[str, Any] = json.loads((config / "scheduler" / "scheduler_config.json").read_text())
    told = metadata.get("modelspec.prediction_type", "")
    if "v_pred" in shapes or told == "v":
        schedule["prediction_type"] = "v_prediction"
    elif told == "epsilon" or "v2-512" in metadata.get("modelspec.architecture", ""):
        schedule["prediction_type"] = "epsilon"
    if "ztsnr" in shapes:
        # Drawing must then begin at the last step (https://arxiv.org/abs/2305.08891, section 3.3).
        schedule |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return schedule


def _header(path: Path, name: str) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Shapes by key, and the header's strings."""
    if path.suffix != ".safetensors":
        raise refusal(name, "is no .safetensors file (pickled checkpoints can run code when they are read)")
    with safe_open(str(path), framework="pt") as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


def tokenizers_for(family: SingleFileFamily, path: Path, name: str, settings: Settings) -> dict[str, CLIPTokenizer]:
    """A tokenizer for each text encoder, from a folder ``tokenizer`` beside the file, else from the hub.

    Raises:
        BaseModelError: neither has one.
    """
    beside = path.with_name("tokenizer")
    source = beside if beside.is_dir() else TOKENIZER_ID
    options = {"cache_dir": settings.model_cache, "token": settings.hf_token.get_secret_value() or None}
    try:
        return {
            encoder: CLIPTokenizer.from_pretrained(source, **options, **({"pad_token": pad} if pad else {}))
            for encoder, pad in family.pads.items()
        }
    except OSError as error:
        raise refusal(
            name,
            f"is a single file, which holds no tokenizer, and that of {source} could not be had; put the "
            "vocab.json and merges.txt of any Stable Diffusion's tokenizer into a folder named tokenizer beside it",
        ) from error
