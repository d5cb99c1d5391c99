"""The ModelSpec and kohya strings of a LoRA file's header, by which other tools recognise it.

Left out on purpose: timestamps and temporary names (equal trainings give equal files), paths and captions (private).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from lora_service.lora.header_facts import THUMBNAIL_KEY, TRIGGER_KEY
from lora_service.lora.weights import LoraSubject, subjects_to_header

PredictionType = Literal["epsilon", "v", ""]
MODELSPEC_PREDICTIONS: Mapping[str, PredictionType] = {
    "epsilon": "epsilon",
    "v_prediction": "v",
    "sample": "",
    "flow": "",
}
"""diffusers' ``prediction_type`` -> ModelSpec's name of it; there is none for the latents and for flow matching."""


@dataclass(frozen=True)
class LoraMetadata:
    """The facts about a LoRA that its header holds.

    Attributes:
        architecture: ModelSpec's name of the base's architecture, without ``/lora``.
        base_version: kohya's name of the base's version.
        base_name: the base's own name, without a path.
        title: for people; A1111 uses it as the LoRA's alias in prompts, so it must be unique.
        subjects: the trigger words that call what was taught, mostly one.
        resolution: width and height it was trained at, in pixels.
        alpha: by which alpha / rank is the scale.
        steps: optimiser steps of the LoRA's stage.
        thumbnail: data URL of a JPEG.
        clip_skip: the text encoder's layer that was read, counted from the end; None: the base's own.
        network_args: LyCORIS' arguments, of kinds that kohya's own trainer has not; none of a LoRA.
    """

    architecture: str
    base_version: str
    base_name: str
    title: str
    subjects: tuple[LoraSubject, ...]
    resolution: tuple[int, int]
    rank: int
    alpha: float
    steps: int
    learning_rate: float
    prediction_type: PredictionType = "epsilon"
    usage_hint: str = ""
    thumbnail: str = ""
    clip_skip: int | None = None
    network_args: Mapping[str, str] = field(default_factory=dict)

    @property
    def triggers(self) -> list[str]:
        """The subjects' trigger words."""
        return [subject.trigger for subject in self.subjects if subject.trigger]


def metadata_strings(description: LoraMetadata, version: str) -> dict[str, str]:
    """Return the header strings of ModelSpec 1.0.1 (https://github.com/Stability-AI/ModelSpec) and kohya's scripts.

    The hashes of both are added where the file is written, as they depend on the format and the dtype.

    Args:
        version: of this package.
    """
    strings = _modelspec(description) | _kohya(description, version) | subjects_to_header(description.subjects)
    return {key: text for key, text in strings.items() if text}


def _modelspec(description: LoraMetadata) -> dict[str, str]:
    width, height = description.resolution
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{description.architecture}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": description.title,
        "modelspec.resolution": f"{width}x{height}",
        TRIGGER_KEY: ", ".join(description.triggers),
        "modelspec.usage_hint": description.usage_hint,
        THUMBNAIL_KEY: description.thumbnail,
        "modelspec.prediction_type": description.prediction_type,
    }


def _kohya(description: LoraMetadata, version: str) -> dict[str, str]:
    return {
        "ss_base_model_version": description.base_version,
        "ss_v2": str(description.base_version.startswith("sd_v2")),  # without it A1111 hides a LoRA of 2.x
        "ss_sd_model_name": description.base_name,
        "ss_network_module": "lycoris.kohya" if description.network_args else "networks.lora",
        "ss_network_args": json.dumps(dict(description.network_args)) if description.network_args else "",
        "ss_network_dim": str(description.rank),
        "ss_network_alpha": str(description.alpha),
        "ss_output_name": description.title,
        # Only the trigger: whole captions would publish a user's descriptions of the pictures.
        "ss_tag_frequency": json.dumps({"subject": dict.fromkeys(description.triggers, 1)})
        if description.triggers
        else "",
        "ss_clip_skip": str(description.clip_skip or ""),
        "ss_steps": str(description.steps),
        "ss_learning_rate": str(description.learning_rate),
        "lora_service.version": version,
    }
