"""The sampling schedulers by the names that clients use; imports neither torch nor diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lora_service.errors import InputError


@dataclass(frozen=True)
class SchedulerChoice:
    """One of diffusers' schedulers with its options.

    Attributes:
        class_name: the name of diffusers' class.
        options: arguments of the class beside the base's own scheduler config.
        max_steps: the most inference steps.
    """

    class_name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    max_steps: int = 500


SCHEDULERS: dict[str, SchedulerChoice] = {
    "DDIM": SchedulerChoice("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "K_EULER": SchedulerChoice("EulerDiscreteScheduler"),
    "DPMSolverMultistep": SchedulerChoice("DPMSolverMultistepScheduler"),
    "K_EULER_ANCESTRAL": SchedulerChoice("EulerAncestralDiscreteScheduler"),
    "PNDM": SchedulerChoice("PNDMScheduler", {"skip_prk_steps": True}),
    "KLMS": SchedulerChoice("LMSDiscreteScheduler"),
    "DPMSolverMultistepKarras": SchedulerChoice("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "UniPC": SchedulerChoice("UniPCMultistepScheduler"),
    "Heun": SchedulerChoice("HeunDiscreteScheduler"),
    "LCM": SchedulerChoice("LCMScheduler", max_steps=50),
}


def check_scheduler(name: str, steps: int) -> None:
    """Check the inputs ``scheduler`` and ``num_inference_steps``.

    Raises:
        InputError: there is no scheduler ``name``, or it cannot take so many steps.
    """
    if name not in SCHEDULERS:
        raise InputError("scheduler", name, f"one of {', '.join(SCHEDULERS)}")
    if steps > SCHEDULERS[name].max_steps:
        expected = f"at most {SCHEDULERS[name].max_steps} for the scheduler {name}"
        raise InputError("num_inference_steps", steps, expected)
