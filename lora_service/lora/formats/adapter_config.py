"""Rank and alpha of PEFT: the header's ``lora_adapter_metadata``, or ``adapter_config.json`` beside the file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_service.errors import LoraFileError
from lora_service.lora import key_mapping
from lora_service.lora.layer_builder import HeaderAlpha
from lora_service.lora.safetensors_header import shortened
from lora_service.lora.weights import COMPONENTS

HEADER_KEY = "lora_adapter_metadata"
FILE_NAME = "adapter_config.json"
_MAX_BYTES = 2**20
_SETTINGS = ("lora_alpha", "alpha_pattern", "use_rslora")


def read_beside(path: Path) -> str | None:
    """Return the text of ``adapter_config.json`` in a LoRA's folder; None without one.

    Raises:
        LoraFileError: it cannot be read, or is no configuration (``bad_metadata``).
    """
    config = path.with_name(FILE_NAME)
    try:
        with config.open("rb") as file:
            return file.read(_MAX_BYTES).decode()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise LoraFileError(
            f"The file {FILE_NAME} beside it cannot be read; remove it.", code="bad_metadata"
        ) from error


def header_alpha(metadata: Mapping[str, str], beside: str | None = None) -> HeaderAlpha:
    """Return the lookup of a module's alpha in PEFT's configuration.

    Args:
        beside: the text of ``adapter_config.json``, used where the header has no configuration.

    Raises:
        LoraFileError: the configuration cannot be read (``bad_metadata``).
    """
    if HEADER_KEY in metadata:
        config = _parse(metadata[HEADER_KEY], f"header string {HEADER_KEY!r}")
    elif beside is not None:
        settings = _parse(beside, f"file {FILE_NAME}")
        config = {f"{component}.{key}": settings.get(key) for component in COMPONENTS for key in _SETTINGS}
    else:
        config = {}

    def alpha_of(component: str, path: str, rank: int) -> float | None:
        alpha = config.get(f"{component}.lora_alpha")
        for pattern, value in (config.get(f"{component}.alpha_pattern") or {}).items():
            if f".{path}".endswith("." + _module_suffix(pattern)):
                alpha = value
                break
        if alpha is None:
            return None
        # Rank-stabilised LoRA (https://arxiv.org/abs/2312.03732) scales by alpha / √rank.
        return float(alpha) * (rank**0.5 if config.get(f"{component}.use_rslora") else 1)

    return alpha_of


def _parse(text: str, place: str) -> Mapping[str, Any]:
    try:
        config = json.loads(text)
        for key, value in config.items():
            name = key.rpartition(".")[2]
            if name == "lora_alpha" and value is not None:
                float(value)
            elif name == "alpha_pattern":
                {_module_suffix(pattern): float(alpha) for pattern, alpha in (value or {}).items()}
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise LoraFileError(
            f"The LoRA's {place} ({shortened(text)!r}) does not hold rank and alpha as PEFT writes them; "
            "remove it or write the file again.",
            code="bad_metadata",
        ) from error
    return dict(config)


def _module_suffix(pattern: str) -> str:
    """Return a pattern of PEFT as the end of a module path.

    Raises:
        ValueError: it is a real regular expression; an untrusted one could take for ever to match.
    """
    suffix = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
    if not re.fullmatch(r"[\w.]+", suffix):
        raise ValueError(f"the pattern {pattern!r} is more than a module's name")
    return key_mapping.strip_text_model(suffix)
