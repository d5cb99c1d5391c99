"""ControlNets and T2I-Adapters by what they are conditioned on, for each family of bases; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from lora_service.errors import InputError, SettingError
from lora_service.models.defaults import EMBEDDED
from lora_service.settings import Settings

AdapterType = Literal["sketch", "seg", "keypose", "depth", "canny", "lineart", "pose"]
ADAPTER_TYPES: tuple[AdapterType, ...] = get_args(AdapterType)
"""The choices of the input ``adapter_type``; the first four are the predecessor's."""
LINE_TYPES: tuple[AdapterType, ...] = ("sketch", "canny", "lineart")
"""Types whose condition is white lines on black."""

_LINES = str(EMBEDDED / "adapters" / "lines")
ADAPTERS: Mapping[str, Mapping[AdapterType, str]] = {
    "embedded": dict.fromkeys(LINE_TYPES, _LINES),
    "sd1": {
        "sketch": "TencentARC/t2iadapter_sketch_sd15v2",
        "seg": "TencentARC/t2iadapter_seg_sd14v1",
        "keypose": "TencentARC/t2iadapter_keypose_sd14v1",
        "depth": "TencentARC/t2iadapter_depth_sd15v2",
        "canny": "TencentARC/t2iadapter_canny_sd15v2",
        "lineart": "lllyasviel/control_v11p_sd15_lineart",
        "pose": "TencentARC/t2iadapter_openpose_sd14v1",
    },
    "sdxl": {
        "sketch": "TencentARC/t2i-adapter-sketch-sdxl-1.0",
        "depth": "TencentARC/t2i-adapter-depth-midas-sdxl-1.0",
        "canny": "TencentARC/t2i-adapter-canny-sdxl-1.0",
        "lineart": "TencentARC/t2i-adapter-lineart-sdxl-1.0",
        "pose": "TencentARC/t2i-adapter-openpose-sdxl-1.0",
    },
}
"""Folder or hub id of the adapter of each type; the setting ``ADAPTERS`` adds to these and replaces them."""


def adapters_of_setting(settings: Settings) -> dict[AdapterType, str]:
    """Return what the setting ``ADAPTERS`` names: type -> folder or hub id.

    Raises:
        SettingError: a part of it is not ``type=folder or hub id``.
    """
    named: dict[AdapterType, str] = {}
    for part in settings.adapters:
        adapter_type, _, where = (text.strip() for text in part.partition("="))
        if adapter_type not in ADAPTER_TYPES or not where:
            expected = f"TYPE=FOLDER or TYPE=OWNER/NAME, split by |, with a TYPE of {', '.join(ADAPTER_TYPES)}"
            raise SettingError("ADAPTERS", part, expected)
        named[adapter_type] = where
    return named


def find_adapter(adapter_type: AdapterType, family: str | None, settings: Settings) -> str:
    """Return the folder or hub id of the adapter for a base of ``family``; None: of no known one.

    Raises:
        InputError: there is none (``no_adapter``).
        SettingError: as of :func:`adapters_of_setting`.
    """
    known = {**ADAPTERS.get(family or "", {}), **adapters_of_setting(settings)}
    if adapter_type not in known:
        names = ", ".join(known) or "none"
        expected = f"one that there are weights for ({names} for this base); the setting ADAPTERS takes more"
        raise InputError("adapter_type", adapter_type, expected, code="no_adapter")
    return known[adapter_type]
