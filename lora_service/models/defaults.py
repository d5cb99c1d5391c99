"""What suits a base model: rates, guidance, resolution. Data, kept beside the weights."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt, TypeAdapter, ValidationError

from lora_service.errors import BaseModelError
from lora_service.validation import first_error

FILE_NAME = "base.json"
"""A folder of weights that holds a file of this name brings its own recipe."""

PredictionType = Literal["epsilon", "v_prediction", "sample"]


@dataclass(frozen=True)
class ModelDefaults:
    """Defaults of inputs that depend on the base model; what a user gives wins.

    The numbers here are those of Stable Diffusion 1.5 as its hosted trainers used
    them (rates for batch 1; token rows pulled to norm 0.4 from N(0, 0.017²)).
    ``token_norm`` and ``token_std`` of None: as the rows of each text encoder's own table are.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    title: str = "Stable Diffusion 1.5"
    architecture: str = "stable-diffusion-v1"
    """ModelSpec's name of the architecture, without ``/lora``."""
    version: str = "sd_v1"
    """kohya's ``ss_base_model_version``."""
    prediction_type: PredictionType | None = None
    """What the UNet predicts where the weights' own scheduler does not say it right; None: as that says."""
    resolution: PositiveInt = 512
    bucket_step: PositiveInt = 64
    """Sides of aspect-ratio buckets are multiples of this."""
    learning_rate_ti: NonNegativeFloat = 5e-4
    learning_rate_text: NonNegativeFloat = 1e-5
    learning_rate_unet: NonNegativeFloat = 2e-4
    continue_inversion: bool = False
    continue_inversion_lr: NonNegativeFloat = 1e-4
    token_norm: PositiveFloat | None = 0.4
    token_std: PositiveFloat | None = 0.017
    guidance_scale: NonNegativeFloat = 7.5
    num_inference_steps: PositiveInt = 30

    @staticmethod
    def read(path: Path) -> ModelDefaults:
        """The recipe in the JSON file ``path``; left-out numbers are Stable Diffusion 1.5's.

        Raises:
            BaseModelError: it is no JSON object, or names what no recipe has, or a value that cannot be.
        """
        try:
            return TypeAdapter(ModelDefaults).validate_json(path.read_bytes())
        except ValidationError as error:
            first = first_error(error)
            about = f"{first.field} is {first.value!r} and " if first.field else ""
            keys = ", ".join(f.name for f in fields(ModelDefaults))
            raise BaseModelError(
                f"{path} is no recipe of a base model ({about}must be {first.expected}); it is a JSON object of {keys}."
            ) from error


SD15 = ModelDefaults()
SD21 = ModelDefaults(
    title="Stable Diffusion 2.1",
    architecture="stable-diffusion-v2-768-v",
    version="sd_v2_v",
    resolution=768,
    token_norm=None,
    token_std=None,
)
"""The rates are carried over from 1.5, not tuned on real weights."""
SD21_BASE = replace(
    SD21, title="Stable Diffusion 2.1 base", architecture="stable-diffusion-v2-512", version="sd_v2", resolution=512
)
SDXL = ModelDefaults(
    title="Stable Diffusion XL",
    architecture="stable-diffusion-xl-v1-base",
    version="sdxl_base_v1-0",
    resolution=1024,
    learning_rate_ti=3e-4,
    learning_rate_unet=1e-4,
    token_norm=None,
    token_std=None,
    guidance_scale=5.0,
)
"""The rates are those of the hosted SDXL trainer (replicate/cog-sdxl), the guidance is diffusers' own."""
