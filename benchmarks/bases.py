"""Loading the base model to benchmark."""

from __future__ import annotations

from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.loading import load_base
from lora_service.settings import Settings


def load_named_base(name: str, *, for_training: bool = False) -> DiffusionBase:
    """Load the base model ``name``, a value of ``BASE_MODEL``, with the environment's other settings."""
    settings = Settings.from_environment().model_copy(update={"base_model": name})
    return load_base(settings, for_training=for_training)
