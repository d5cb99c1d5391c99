"""Loads ControlNets and T2I-Adapters, and keeps the last one."""

from __future__ import annotations

import json
from typing import Any, TypeAlias

from diffusers import ControlNetModel, T2IAdapter
from safetensors import SafetensorError

from lora_service.errors import AdapterError, BaseModelError, InputError
from lora_service.models.control_registry import AdapterType, adapters_of_setting, find_adapter
from lora_service.models.defaults import EMBEDDED, ModelDefaults
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.hub_download import local_folder
from lora_service.models.hub_files import CONFIG, select_adapter
from lora_service.settings import Settings

Adapter: TypeAlias = ControlNetModel | T2IAdapter

_CLASSES: dict[str, Any] = {"ControlNetModel": ControlNetModel, "T2IAdapter": T2IAdapter}


class ControlModels:
    """The ControlNets and T2I-Adapters for a base, loaded on first use; the last is kept, as one takes up to 2.5 GB.

    Args:
        base: the base.
        settings: name further ones, and the folder of downloads; those of the environment unless given.

    Raises:
        SettingError: ``ADAPTERS`` cannot be used.
    """

    def __init__(self, base: DiffusionBase, settings: Settings | None = None) -> None:
        self._base, self._settings = base, settings or Settings.from_environment()
        adapters_of_setting(self._settings)
        self._loaded: tuple[str, Adapter] | None = None

    def get(self, adapter_type: AdapterType) -> Adapter:
        """Return the adapter of a type, frozen, on the base's device and in its dtype.

        Raises:
            InputError: there is none for this base (``no_adapter``).
            AdapterError: it cannot be loaded, or is for another base.
        """
        where = find_adapter(adapter_type, family_of(self._base), self._settings)
        if self._loaded is None or self._loaded[0] != where:
            self._loaded = None  # its memory first
            adapter = load_adapter(where, self._settings)
            check_adapter(where, adapter, self._base)
            adapter.eval().requires_grad_(False).to(self._base.device, self._base.dtype)
            self._loaded = where, adapter
        return self._loaded[1]


def family_of(base: DiffusionBase) -> str | None:
    """Return the name of the family whose adapters fit ``base``; None where there are none."""
    if base.defaults.version == ModelDefaults.read(EMBEDDED / "base.json").version:
        return "embedded"
    fits = base.text.width == base.family.control_width
    return base.family.name if fits else None


def load_adapter(where: str, settings: Settings) -> Adapter:
    """Load a ControlNet or T2I-Adapter in diffusers' layout, on the CPU; one on the hub is downloaded first.

    Some are on the hub only as pickled weights, which are read without running code (``weights_only``).

    Args:
        where: a folder, or a hub id, ``owner/name`` or ``owner/name@revision``.
        settings: the folder that models are kept in, and the address and token of the hub.

    Raises:
        AdapterError: there is no such adapter, or it cannot be read.
    """
    try:
        folder = local_folder(where, settings, "adapter", select_adapter)
        class_name = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("_class_name")
        if class_name not in _CLASSES:
            raise _unusable(where, f"is diffusers' {class_name} and no {' or '.join(_CLASSES)}", "unsupported_adapter")
        adapter: Adapter = _CLASSES[class_name].from_pretrained(folder)
    except (InputError, BaseModelError) as error:
        raise AdapterError(str(error), code=error.code, field="adapter_type") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise _unusable(where, f"could not be loaded ({reason})", "unreadable_adapter") from error
    if missing := next((name for name, each in adapter.named_parameters() if each.is_meta), None):
        raise _unusable(where, f"lacks weights, like {missing}", "unreadable_adapter")
    return adapter


def check_adapter(where: str, adapter: Adapter, base: DiffusionBase) -> None:
    """Check that ``adapter`` was made for a UNet like that of ``base``.

    Raises:
        AdapterError: it was not (``wrong_base``).
    """
    unet, config = base.unet.config, adapter.config
    widths = tuple(unet.block_out_channels)
    if isinstance(adapter, ControlNetModel):
        fits = (
            tuple(config.block_out_channels) == widths
            and config.cross_attention_dim == unet.cross_attention_dim
            and config.in_channels == base.vae.config.latent_channels
            and config.addition_embed_type == unet.addition_embed_type
        )
    else:
        is_of_family = config.adapter_type.endswith(base.family.t2i_adapter_end)
        fits = tuple(config.channels[: len(widths)]) == widths and is_of_family
    if not fits:
        raise _unusable(where, f"was made for another base than {base.name!r}", "wrong_base")


def _unusable(where: str, reason: str, code: str) -> AdapterError:
    message = f"The adapter {where!r} {reason}; name another one, a folder or hub id, in the setting ADAPTERS."
    return AdapterError(message, code=code, field="adapter_type")
