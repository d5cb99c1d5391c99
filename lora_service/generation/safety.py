"""Stable Diffusion's safety checker, picture by picture."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError

from lora_service.errors import BaseModelError, HeldBackError, InputError, SettingError
from lora_service.generation.image_files import GeneratedImage
from lora_service.models.hub_download import local_folder
from lora_service.models.hub_files import SAFETY_CHECKER_FOLDERS, select_safety_checker
from lora_service.models.registry import INDEX
from lora_service.settings import Settings

_EXPECTED = (
    "a folder or hub id of Stable Diffusion's safety checker, like CompVis/stable-diffusion-safety-checker, or of a "
    "Stable Diffusion that has one"
)


@dataclass(frozen=True)
class SafetyChecker:
    """The checker with its preprocessing, on its device (https://arxiv.org/abs/2210.04610 describes what it finds)."""

    model: Any
    preprocess: Any
    device: torch.device

    @staticmethod
    def load(settings: Settings, device: torch.device) -> SafetyChecker:
        """Load the checker of the setting ``SAFETY_CHECKER``; one on the hub is downloaded first.

        Raises:
            SettingError: it names none, or one that cannot be had.
        """
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
        from transformers import CLIPImageProcessorPil

        # Its warning says that black pictures are returned; here they are left out, and the job's log says so.
        logging.getLogger(StableDiffusionSafetyChecker.__module__).setLevel(logging.ERROR)
        try:
            folder = local_folder(settings.safety_checker, settings, "safety-checker", select_safety_checker)
            inside = (folder / SAFETY_CHECKER_FOLDERS[0]).is_dir() or (folder / INDEX).exists()
            folders = [folder / name if inside else folder for name in SAFETY_CHECKER_FOLDERS]
            model, loading = StableDiffusionSafetyChecker.from_pretrained(folders[0], output_loading_info=True)
            preprocess = CLIPImageProcessorPil.from_pretrained(folders[1])
        except (InputError, BaseModelError, OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise SettingError("SAFETY_CHECKER", settings.safety_checker, f"{_EXPECTED} ({reason})") from error
        if loading["missing_keys"]:  # the library would draw them at random
            missing = sorted(loading["missing_keys"])[0]
            raise SettingError("SAFETY_CHECKER", settings.safety_checker, f"{_EXPECTED} (it lacks {missing})")
        return SafetyChecker(model.eval().requires_grad_(False).to(device), preprocess, device)

    @torch.inference_mode()
    def holds_back(self, image: Image.Image) -> bool:
        """Return True if the picture must not be given out."""
        pixels = self.preprocess(images=[image.convert("RGB")], return_tensors="pt").pixel_values.to(self.device)
        # It blackens the second argument in place, which is of no use here.
        _, held_back = self.model(clip_input=pixels, images=[np.zeros((1, 1, 3))])
        return bool(held_back[0])


def without_held_back(
    images: Sequence[GeneratedImage], checker: SafetyChecker, log: Callable[[str], None]
) -> list[tuple[int, GeneratedImage]]:
    """Return the pictures that may be given out, with their places among ``images``; the log names the others.

    Raises:
        HeldBackError: there are none.
    """
    kept = []
    for index, generated in enumerate(images):
        if checker.holds_back(generated.image):
            place = f"{index + 1} of {len(images)} (seed {generated.seed})"
            log(f"warning: image {place} was held back by the safety checker; another seed or prompt may pass")
        else:
            kept.append((index, generated))
    if not kept:
        which = "The picture was" if len(images) == 1 else f"All {len(images)} pictures were"
        raise HeldBackError(
            f"{which} held back by the safety checker, which took them for NSFW content; run it again with another "
            "seed, or try another prompt.",
            field="prompt",
        )
    return kept


def is_check_required(settings: Settings, disable: bool, log: Callable[[str], None]) -> bool:
    """Return True if the pictures of a request are to be checked.

    Args:
        settings: those of the operator, who decides.
        disable: the request's ``disable_safety_checker``.
        log: told where that has no effect.
    """
    if not settings.safety_checker:
        return False
    if disable and not settings.allow_disabling_safety_checker:
        log("warning: disable_safety_checker has no effect, as the setting ALLOW_DISABLING_SAFETY_CHECKER is not on")
    return not (disable and settings.allow_disabling_safety_checker)
