"""The facts in a LoRA file's header, read without torch and without a look at its tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_service.lora.safetensors_header import read_header, shortened

TOKENS_KEY = "lora_service.tokens"
REPORT_KEY = "lora_service.report"
TRIGGER_KEY = "modelspec.trigger_phrase"
THUMBNAIL_KEY = "modelspec.thumbnail"
_MOST_TOKENS = 75
_LONGEST = 200


@dataclass(frozen=True)
class HeaderFacts:
    """The facts of a header; those that it does not have, or not as we write them, are empty.

    Attributes:
        tokens: names of the learned tokens.
        prompt: one to start with, for our own inference.
        thumbnail: data URL of a picture.
        losses: stage -> means of equal stretches of the training loss.
        held_out_losses: stage -> step and held-out loss.
    """

    trigger: str = ""
    tokens: tuple[str, ...] = ()
    base: str = ""
    rank: int | None = None
    prompt: str = ""
    thumbnail: str = ""
    losses: Mapping[str, list[float]] = field(default_factory=dict)
    held_out_losses: Mapping[str, list[list[float]]] = field(default_factory=dict)


def read_facts(path: Path, name: str = "") -> HeaderFacts:
    """Return the facts in the header of a safetensors file.

    Raises:
        LoraFileError: as of :func:`~lora_service.lora.safetensors_header.read_header`.
    """
    metadata = read_header(path, name).metadata
    report, rank = _object(metadata.get(REPORT_KEY)), metadata.get("ss_network_dim", "")
    return HeaderFacts(
        trigger=shortened(metadata.get(TRIGGER_KEY, "").strip(), _LONGEST),
        tokens=tuple(shortened(token, _LONGEST) for token in [*_object(metadata.get(TOKENS_KEY))][:_MOST_TOKENS]),
        base=shortened(metadata.get("ss_sd_model_name") or metadata.get("ss_base_model_version", ""), _LONGEST),
        rank=int(rank) if rank.isdecimal() and len(rank) < 6 else None,
        prompt=shortened(prompt, _LONGEST) if isinstance(prompt := report.get("prompt"), str) else "",
        thumbnail=metadata.get(THUMBNAIL_KEY, ""),
        losses={stage: numbers for stage, value in _items(report, "losses") if (numbers := _numbers(value))},
        held_out_losses={
            stage: pairs
            for stage, value in _items(report, "held_out_losses")
            if isinstance(value, list)
            if (pairs := [pair for each in value if len(pair := _numbers(each)) == 2])
        },
    )


def _object(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _items(report: Mapping[str, Any], name: str) -> list[tuple[str, Any]]:
    value = report.get(name)
    return [(shortened(key), each) for key, each in value.items()] if isinstance(value, dict) else []


def _numbers(value: Any) -> list[float]:
    """Return a list of numbers; none for anything else."""
    is_list = isinstance(value, list) and len(value) <= 10_000
    return value if is_list and all(isinstance(each, int | float) for each in value) else []
