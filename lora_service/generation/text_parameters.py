"""The settings of an image as A1111 writes them, which Civitai, Forge and ComfyUI's loaders read too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lora_service.generation.schedulers import SCHEDULERS

_SPECIAL = frozenset(',:\n"')


def text_parameters(settings: Mapping[str, Any]) -> str:
    """Return the prompt, a line with the negative prompt, and a line of settings by A1111's names.

    Args:
        settings: those of a generated image, by our names.
    """
    lines = [str(settings.get("prompt", ""))]
    if negative := settings.get("negative_prompt"):
        lines.append(f"Negative prompt: {negative}")
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in _named(settings).items() if value != ""))
    return "\n".join(lines)


def _named(settings: Mapping[str, Any]) -> dict[str, Any]:
    scheduler = settings.get("scheduler", "")
    choice = SCHEDULERS.get(scheduler)
    schedule = settings.get("schedule") or (choice.schedule if choice else "default")
    size = f"{settings['width']}x{settings['height']}" if "width" in settings else ""
    return {
        "Steps": settings.get("num_inference_steps", ""),
        "Sampler": (choice and choice.webui_name) or scheduler,
        "Schedule type": schedule.capitalize() if schedule != "default" else "",
        "CFG scale": settings.get("guidance_scale", ""),
        "Seed": settings.get("seed", ""),
        "Size": size,
        "Model": settings.get("base", ""),
        "Clip skip": settings.get("clip_skip", ""),
        "Denoising strength": settings.get("prompt_strength", ""),
        "Mask blur": settings.get("mask_feather", ""),
    }


def _quoted(value: Any) -> str:
    """Return a value, as a JSON string where a comma or a colon in it would end it."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if _SPECIAL & set(text) else text
