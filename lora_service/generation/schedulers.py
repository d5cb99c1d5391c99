"""The samplers by the names that clients know."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lora_service.errors import InputError

_ENDS_WITHOUT_SIGNAL = "rescale_betas_zero_snr"
"""diffusers' name for it (https://arxiv.org/abs/2305.08891, section 3.1)."""


@dataclass(frozen=True)
class SchedulerChoice:
    """One of diffusers' schedulers: the class's name, and options that make it what its name promises.

    ``x0_class`` is the class in ``lora_service/generation/x0_schedulers.py`` that takes its place
    on a base that predicts the latents, where diffusers' own does not know how.
    """

    scheduler: str
    options: Mapping[str, Any] = field(default_factory=dict)
    most_steps: int = 500
    x0_class: str = ""

    def make(self, config: Mapping[str, Any]) -> Any:
        """The scheduler on a base's own noise schedule ``config``."""
        if self.x0_class and config.get("prediction_type") == "sample":
            from lora_service.generation import x0_schedulers

            return getattr(x0_schedulers, self.x0_class).from_config(config, **self.options, prediction_type="epsilon")
        return self._kind.from_config(config, **self.options)

    def follows(self, config: Mapping[str, Any]) -> bool:
        """Whether it keeps to the noise schedule ``config``: some classes leave out that it ends without signal."""
        known = inspect.signature(self._kind.__init__).parameters
        return not config.get(_ENDS_WITHOUT_SIGNAL) or _ENDS_WITHOUT_SIGNAL in known

    @property
    def _kind(self) -> Any:
        import diffusers

        return getattr(diffusers, self.scheduler)


SCHEDULERS: dict[str, SchedulerChoice] = {
    "DDIM": SchedulerChoice("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "K_EULER": SchedulerChoice("EulerDiscreteScheduler"),
    "DPMSolverMultistep": SchedulerChoice("DPMSolverMultistepScheduler"),
    "K_EULER_ANCESTRAL": SchedulerChoice("EulerAncestralDiscreteScheduler", x0_class="EulerAncestral"),
    "PNDM": SchedulerChoice("PNDMScheduler", {"skip_prk_steps": True}, x0_class="PNDM"),
    "KLMS": SchedulerChoice("LMSDiscreteScheduler"),
    "DPMSolverMultistepKarras": SchedulerChoice("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "UniPC": SchedulerChoice("UniPCMultistepScheduler"),
    "Heun": SchedulerChoice("HeunDiscreteScheduler"),
    "LCM": SchedulerChoice("LCMScheduler", most_steps=50),
}


def check_scheduler(name: str, steps: int) -> None:
    """Raises ``InputError`` when there is no such sampler, or it cannot take so many steps."""
    if name not in SCHEDULERS:
        raise InputError("scheduler", name, f"one of {', '.join(SCHEDULERS)}")
    if steps > SCHEDULERS[name].most_steps:
        raise InputError(
            "num_inference_steps", steps, f"at most {SCHEDULERS[name].most_steps} for the scheduler {name}"
        )


def check_schedule(name: str, config: Mapping[str, Any]) -> None:
    """Raises ``InputError`` when the sampler would draw on another noise schedule than the base's own ``config``."""
    if not SCHEDULERS[name].follows(config):
        able = ", ".join(other for other, sampler in SCHEDULERS.items() if sampler.follows(config))
        raise InputError("scheduler", name, f"one of {able} for a base whose noise schedule ends without signal")
