"""The ModelSpec and kohya strings of a LoRA file's header, by which other tools know what it is.

Left out on purpose: clocks and temporary names (equal trainings give equal files), paths and captions (private).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

PredictionType = Literal["epsilon", "v", ""]
MODELSPEC_PREDICTIONS: Mapping[str, PredictionType] = {"epsilon": "epsilon", "v_prediction": "v", "sample": ""}
"""ModelSpec's names of diffusers' ``prediction_type``; it has none for the latents themselves."""


@dataclass(frozen=True)
class LoraMetadata:
    """What a header tells about a LoRA.

    Attributes:
        architecture: ModelSpec's name of the base's architecture, without ``/lora``.
        base_version: kohya's name of the base's version.
        base_name: the base's own name, without a path.
        title: for people; A1111 uses it as the LoRA's alias in prompts, so it must be unique.
        trigger: the plain word that calls the subject.
        resolution: width and height it was trained at, in pixels.
        steps: optimiser steps of the LoRA's stage.
        thumbnail: a JPEG of at most 256 pixels a side; empty for none.
    """

    architecture: str
    base_version: str
    base_name: str
    title: str
    trigger: str
    resolution: tuple[int, int]
    rank: int
    alpha: float
    steps: int
    learning_rate: float
    prediction_type: PredictionType = "epsilon"
    usage_hint: str = ""
    thumbnail: bytes = b""


def metadata_strings(description: LoraMetadata, version: str) -> dict[str, str]:
    """The header strings of ModelSpec 1.0.1 (https://github.com/Stability-AI/ModelSpec) and kohya's scripts.

    ``modelspec.hash_sha256`` is added where the file is written, as it depends on the layout and the dtype.

    Args:
        version: of this package.
    """
    return {key: text for key, text in (_modelspec(description) | _kohya(description, version)).items() if text}


def _modelspec(described: LoraMetadata) -> dict[str, str]:
    width, height = described.resolution
    thumbnail = base64.b64encode(described.thumbnail).decode("ascii")
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{described.architecture}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": described.title,
        "modelspec.resolution": f"{width}x{height}",
        "modelspec.trigger_phrase": described.trigger,
        "modelspec.usage_hint": described.usage_hint,
        "modelspec.prediction_type": described.prediction_type,
        "modelspec.thumbnail": thumbnail and f"data:image/jpeg;base64,{thumbnail}",
    }


def _kohya(described: LoraMetadata, version: str) -> dict[str, str]:
    return {
        "ss_base_model_version": described.base_version,
        "ss_sd_model_name": described.base_name,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(described.rank),
        "ss_network_alpha": str(described.alpha),
        "ss_output_name": described.title,
        # Only the trigger: whole captions would publish what a user wrote about the pictures.
        "ss_tag_frequency": json.dumps({"subject": {described.trigger: 1}}) if described.trigger else "",
        "ss_steps": str(described.steps),
        "ss_learning_rate": str(described.learning_rate),
        "lora_service.version": version,
    }
