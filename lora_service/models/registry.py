"""The families of base models, the models known by name, and where weights lie; imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lora_service.errors import BaseModelError
from lora_service.models.defaults import DEFAULTS_FILE, EMBEDDED, ModelDefaults
from lora_service.models.families.chroma import CHROMA
from lora_service.models.families.family import Family
from lora_service.models.families.flux1 import FLUX1
from lora_service.models.families.flux2_klein import FLUX2_KLEIN
from lora_service.models.families.krea2 import KREA2
from lora_service.models.families.qwen_image import QWEN_IMAGE
from lora_service.models.families.sd1 import SD1
from lora_service.models.families.sd2 import SD2
from lora_service.models.families.sd3 import SD3
from lora_service.models.families.sdxl import SDXL
from lora_service.models.families.zimage import ZIMAGE

INDEX = "model_index.json"
"""diffusers' list of a model's components."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_ID_MAX_LENGTH = 96  # the hub's own limit

FAMILIES: tuple[Family, ...] = (SD1, SD2, SDXL, FLUX2_KLEIN, ZIMAGE, KREA2, CHROMA, FLUX1, QWEN_IMAGE, SD3)
"""All families; the first that matches a model is its own."""
REGISTRY = {name: base for family in FAMILIES for name, base in family.bases.items()}
ACCEPTED = (
    f"embedded, {', '.join(REGISTRY)}, a hub id (owner/name or owner/name@revision), a folder in diffusers' layout "
    "or a single .safetensors file, of a Stable Diffusion or of a transformer alone; "
    f"of the families {', '.join(f.title for f in FAMILIES)}"
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
        registered = registered or next((b.defaults for b in REGISTRY.values() if b.hub_id == short_name), None)
    if not path.exists():
        return None, registered
    own = path / DEFAULTS_FILE if path.is_dir() else path.with_name(f"{path.stem}.{DEFAULTS_FILE}")
    return path, ModelDefaults.read(own) if own.exists() else registered or _defaults_in(path)


def folder_of(name: str, model_cache: Path) -> Path:
    """Return the folder that a model of the hub is downloaded to: ``sd15``, ``owner/name``, or with ``@revision``."""
    short_name, at, revision = name.partition("@")
    hub_id = REGISTRY[short_name].hub_id if short_name in REGISTRY else short_name
    return model_cache / f"{hub_id}{at}{revision}".replace("/", "--")


def family_at(name: str, path: Path | None) -> Family | None:
    """Return the family of the base ``name``, which lies at ``path`` if at all; None where only loading shows it."""
    if path is not None:
        try:
            return family_in(path) if path.is_dir() else family_of_file(path)
        except (OSError, ValueError, TypeError, AttributeError, SafetensorError):
            return None  # loading the model reports what is wrong with it
    hub_id = name.partition("@")[0]
    return next((f for f in FAMILIES for short, b in f.bases.items() if hub_id in (short, b.hub_id)), None)


def family_of_file(path: Path) -> Family | None:
    """Return the family of the transformer in a .safetensors file; None for any other file.

    Raises:
        OSError, SafetensorError: it cannot be read.
    """
    if path.suffix != ".safetensors":
        return None
    with safe_open(str(path), framework="np") as file:
        names = {transformer_name(key) for key in file.keys()}  # noqa: SIM118
    return next((family for family in FAMILIES if not names.isdisjoint(family.file_keys)), None)


def transformer_name(key: str) -> str:
    """Return the name of a tensor of a transformer without the prefix of ComfyUI's files."""
    return key.removeprefix("model.").removeprefix("diffusion_model.")


def find_family(pipeline_class: str, backbone: Mapping[str, Any]) -> Family | None:
    """Return the family of a model, by diffusers' class of its pipeline and its backbone's config; None: of none."""
    of_class = (family for family in FAMILIES if pipeline_class in family.pipelines.values())
    return next((family for family in of_class if family.matches(backbone)), None)


def family_in(folder: Path) -> Family | None:
    """Return the family that the configurations in ``folder`` show; None for those of none.

    Raises:
        OSError, ValueError, AttributeError: there is no such configuration, or it cannot be read.
    """
    pipeline_class = str(_read_json(folder / INDEX).get("_class_name"))
    backbones = {f.backbone for f in FAMILIES if pipeline_class in f.pipelines.values()}
    configs = (_read_json(folder / backbone / "config.json") for backbone in backbones)
    return next((found for config in configs if (found := find_family(pipeline_class, config))), None)


def _read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


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
        family = family_in(folder)
        if family is None:
            return None
        return family.defaults(_read_json(folder / "scheduler" / "scheduler_config.json"), _read_json(folder / INDEX))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # loading the model reports what is wrong with it
