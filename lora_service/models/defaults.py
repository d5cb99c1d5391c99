"""The defaults that suit a base model, and the models that have a short name; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt, TypeAdapter, ValidationError

from lora_service.errors import BaseModelError
from lora_service.validation import first_error

DEFAULTS_FILE = "base.json"
"""Name of the file with a model's own defaults, beside its weights."""

EMBEDDED = Path(__file__).parent / "embedded"
"""The base model that the package carries."""

PredictionType = Literal["epsilon", "v_prediction", "sample"]


@dataclass(frozen=True)
class ModelDefaults:
    """Defaults of the inputs that depend on the base model; an input that the user sets wins.

    The numbers here are those of Stable Diffusion 1.5 as its hosted trainers used them (rates for batch 1; the token
    embeddings pulled to norm 0.4 from N(0, 0.017²)). With ``token_norm`` and ``token_std`` of None, norm and standard
    deviation are those of each text encoder's own embeddings.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    title: str = "Stable Diffusion 1.5"
    architecture: str = "stable-diffusion-v1"
    """ModelSpec's name of the architecture, without ``/lora``."""
    version: str = "sd_v1"
    """kohya's ``ss_base_model_version``."""
    prediction_type: PredictionType | None = None
    """The UNet's prediction where the weights' own scheduler config is wrong about it; None: as that has it."""
    zero_terminal_snr: bool | None = None
    """Whether the last timestep has no signal (https://arxiv.org/abs/2305.08891), where the weights' own scheduler
    config is wrong about it; None: as that has it."""
    resolution: PositiveInt = 512
    bucket_step: PositiveInt = 64
    """Sides of aspect-ratio buckets are multiples of this."""
    learning_rate_ti: NonNegativeFloat = 5e-4
    learning_rate_text: NonNegativeFloat = 1e-5
    learning_rate_unet: NonNegativeFloat = 2e-4
    style_rate: PositiveFloat = 1.0
    """What the rates of text encoder and UNet are multiplied by where a style is taught."""
    continue_inversion: bool = False
    continue_inversion_lr: NonNegativeFloat = 1e-4
    token_norm: PositiveFloat | None = 0.4
    token_std: PositiveFloat | None = 0.017
    guidance_scale: NonNegativeFloat = 7.5
    num_inference_steps: PositiveInt = 30
    draws_with: str = ""
    """The short name of a distilled twin that LoRAs of this base are drawn with too."""
    trains_on: str = ""
    """The short name of the base that LoRAs for this distilled one are trained on."""

    @staticmethod
    def read(path: Path) -> ModelDefaults:
        """Read the JSON file ``path``; numbers that it leaves out are Stable Diffusion 1.5's.

        Raises:
            BaseModelError: it is no JSON object, or has an unknown key or an impossible value.
        """
        try:
            return TypeAdapter(ModelDefaults).validate_json(path.read_bytes())
        except ValidationError as error:
            first = first_error(error)
            about = f"{first.field} is {first.value!r} and " if first.field else ""
            keys = ", ".join(f.name for f in fields(ModelDefaults))
            raise BaseModelError(
                f"{path} holds no defaults of a base model ({about}must be {first.expected}); "
                f"it must be a JSON object of {keys}.",
                code="invalid_defaults",
                field=first.field,
            ) from error


@dataclass(frozen=True)
class RegisteredBase:
    """A base model with a short name.

    Attributes:
        hub_id: its id on the hub.
        licence: the name of the weights' licence.
    """

    hub_id: str
    defaults: ModelDefaults
    licence: str
