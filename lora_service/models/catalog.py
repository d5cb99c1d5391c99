"""Which base model is meant, where its weights are, and what suits it; no torch is needed to know."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lora_service.errors import BaseModelError
from lora_service.models.recipe import FILE_NAME, SD15, SD21, SD21_BASE, BaseRecipe

EMBEDDED = Path(__file__).parent / "embedded"


@dataclass(frozen=True)
class KnownBase:
    """A base model with a short name: its id on the hub, and what suits it."""

    hub_id: str
    recipe: BaseRecipe


KNOWN = {
    "sd15": KnownBase("stable-diffusion-v1-5/stable-diffusion-v1-5", SD15),
    "sd21": KnownBase("stabilityai/stable-diffusion-2-1", SD21),
}
ACCEPTED = (
    f"embedded, {', '.join(KNOWN)}, a hub id (owner/name), a folder in diffusers' layout "
    "or a single .safetensors file, of a Stable Diffusion 1.x or 2.x"
)


def locate(name: str) -> tuple[Path | str, BaseRecipe | None]:
    """Where the weights of ``BASE_MODEL`` are, and the recipe if one lies beside them or is known by name.

    Raises:
        BaseModelError: ``name`` can be no base model.
    """
    if name in KNOWN:
        return KNOWN[name].hub_id, KNOWN[name].recipe
    path = EMBEDDED if name == "embedded" else Path(name).expanduser()
    if not path.exists():
        if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
            raise BaseModelError(f"BASE_MODEL is {name!r}, but there is no such folder or file; it must be {ACCEPTED}.")
        return name, None
    beside = path / FILE_NAME if path.is_dir() else path.with_name(f"{path.stem}.{FILE_NAME}")
    return path, BaseRecipe.read(beside) if beside.exists() else None


def recipe_of(text_width: int, prediction_type: str) -> BaseRecipe:
    """The recipe for a fine-tuned model of a family, told by its text encoder's width and what it predicts."""
    if text_width != 1024:
        return SD15
    return SD21 if prediction_type == "v_prediction" else SD21_BASE
