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
        schedule: the spacing of noise levels that its name stands for.
        webui_name: A1111's name of the sampler, without the schedule; "" where it has none.
    """

    class_name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    max_steps: int = 500
    schedule: str = "default"
    webui_name: str = ""


SCHEDULERS: dict[str, SchedulerChoice] = {
    "DDIM": SchedulerChoice("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}, webui_name="DDIM"),
    "K_EULER": SchedulerChoice("EulerDiscreteScheduler", webui_name="Euler"),
    "DPMSolverMultistep": SchedulerChoice("DPMSolverMultistepScheduler", webui_name="DPM++ 2M"),
    "K_EULER_ANCESTRAL": SchedulerChoice("EulerAncestralDiscreteScheduler", webui_name="Euler a"),
    "PNDM": SchedulerChoice("PNDMScheduler", {"skip_prk_steps": True}, webui_name="PLMS"),
    "KLMS": SchedulerChoice("LMSDiscreteScheduler", webui_name="LMS"),
    "DPMSolverMultistepKarras": SchedulerChoice(
        "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, schedule="karras", webui_name="DPM++ 2M"
    ),
    "UniPC": SchedulerChoice("UniPCMultistepScheduler", webui_name="UniPC"),
    "Heun": SchedulerChoice("HeunDiscreteScheduler", webui_name="Heun"),
    "LCM": SchedulerChoice("LCMScheduler", max_steps=50, webui_name="LCM"),
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
