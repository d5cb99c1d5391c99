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
        schedules: whether its noise levels can be spaced otherwise (:data:`SCHEDULES`).
        schedule: the spacing that its name stands for.
        flow_class_name: the name of diffusers' class for bases of flow matching; "" where there is none.
        webui_name: A1111's name of the sampler, without the schedule; "" where it has none.
    """

    class_name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    max_steps: int = 500
    schedules: bool = True
    schedule: str = "default"
    webui_name: str = ""
    flow_class_name: str = ""


SCHEDULERS: dict[str, SchedulerChoice] = {
    "DDIM": SchedulerChoice(
        "DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}, schedules=False, webui_name="DDIM"
    ),
    "K_EULER": SchedulerChoice(
        "EulerDiscreteScheduler", webui_name="Euler", flow_class_name="FlowMatchEulerDiscreteScheduler"
    ),
    "DPMSolverMultistep": SchedulerChoice("DPMSolverMultistepScheduler", webui_name="DPM++ 2M"),
    "K_EULER_ANCESTRAL": SchedulerChoice("EulerAncestralDiscreteScheduler", schedules=False, webui_name="Euler a"),
    "PNDM": SchedulerChoice("PNDMScheduler", {"skip_prk_steps": True}, schedules=False, webui_name="PLMS"),
    "KLMS": SchedulerChoice("LMSDiscreteScheduler", webui_name="LMS"),
    "DPMSolverMultistepKarras": SchedulerChoice(
        "DPMSolverMultistepScheduler", schedule="karras", webui_name="DPM++ 2M"
    ),
    "DPMSolverMultistepSDE": SchedulerChoice(
        "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, webui_name="DPM++ 2M SDE"
    ),
    "DPMSolverSinglestep": SchedulerChoice("DPMSolverSinglestepScheduler", webui_name="DPM++ 2S"),
    "DPMSolverSinglestepSDE": SchedulerChoice(
        "DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++"}, webui_name="DPM++ SDE"
    ),
    "KDPM2": SchedulerChoice("KDPM2DiscreteScheduler", webui_name="DPM2"),
    "KDPM2Ancestral": SchedulerChoice("KDPM2AncestralDiscreteScheduler", webui_name="DPM2 a"),
    "UniPC": SchedulerChoice("UniPCMultistepScheduler", webui_name="UniPC"),
    "Heun": SchedulerChoice("HeunDiscreteScheduler", webui_name="Heun"),
    "LCM": SchedulerChoice("LCMScheduler", max_steps=50, schedules=False, webui_name="LCM"),
}

SCHEDULES: dict[str, Mapping[str, Any]] = {
    "default": {},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
}
"""The spacings of noise levels with their arguments of diffusers' classes. ``default`` is the scheduler's own; karras:
https://arxiv.org/abs/2206.00364, equation 5; exponential: evenly in their logarithm; beta:
https://arxiv.org/abs/2407.12173."""


def check_scheduler(name: str, steps: int, schedule: str = "default") -> None:
    """Check the inputs ``scheduler``, ``num_inference_steps`` and ``schedule``.

    Raises:
        InputError: there is no scheduler ``name``, it cannot take so many steps, or not space its noise levels so.
    """
    if name not in SCHEDULERS:
        raise InputError("scheduler", name, f"one of {', '.join(SCHEDULERS)}")
    choice = SCHEDULERS[name]
    if steps > choice.max_steps:
        expected = f"at most {choice.max_steps} for the scheduler {name}"
        raise InputError("num_inference_steps", steps, expected)
    if schedule not in SCHEDULES:
        raise InputError("schedule", schedule, f"one of {', '.join(SCHEDULES)}")
    if schedule in ("default", choice.schedule):
        return
    if choice.schedule != "default":
        plain = name.lower().removesuffix(choice.schedule)
        plain = next(other for other in SCHEDULERS if other.lower() == plain)
        raise InputError("schedule", schedule, f"default or {choice.schedule} for {name}, or used with {plain}")
    if not choice.schedules:
        others = ", ".join(other for other, c in SCHEDULERS.items() if c.schedules)
        raise InputError("schedule", schedule, f"default for {name}; {others} take any", code="unsupported_schedule")


def scheduler_options(name: str, schedule: str = "default") -> dict[str, Any]:
    """Return the arguments of the class of the scheduler ``name``; both names have been checked."""
    choice = SCHEDULERS[name]
    return {**choice.options, **SCHEDULES[choice.schedule if schedule == "default" else schedule]}
