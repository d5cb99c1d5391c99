"""The samplers by the names that clients know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lora_service.errors import InputError


@dataclass(frozen=True)
class Sampler:
    """One of diffusers' schedulers: the class's name, and options that make it what its name promises."""

    scheduler: str
    options: Mapping[str, Any] = field(default_factory=dict)
    most_steps: int = 500

    def make(self, config: Mapping[str, Any]) -> Any:
        """The scheduler on a base's own noise schedule ``config``."""
        import diffusers

        return getattr(diffusers, self.scheduler).from_config(config, **self.options)


SAMPLERS: dict[str, Sampler] = {
    "DDIM": Sampler("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "K_EULER": Sampler("EulerDiscreteScheduler"),
    "DPMSolverMultistep": Sampler("DPMSolverMultistepScheduler"),
    "K_EULER_ANCESTRAL": Sampler("EulerAncestralDiscreteScheduler"),
    "PNDM": Sampler("PNDMScheduler", {"skip_prk_steps": True}),
    "KLMS": Sampler("LMSDiscreteScheduler"),
    "DPMSolverMultistepKarras": Sampler("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "UniPC": Sampler("UniPCMultistepScheduler"),
    "Heun": Sampler("HeunDiscreteScheduler"),
    "LCM": Sampler("LCMScheduler", most_steps=50),
}


def check_sampler(name: str, steps: int) -> None:
    """Raises ``InputError`` when there is no such sampler, or it cannot take so many steps."""
    if name not in SAMPLERS:
        raise InputError("scheduler", name, f"one of {', '.join(SAMPLERS)}")
    if steps > SAMPLERS[name].most_steps:
        raise InputError("num_inference_steps", steps, f"at most {SAMPLERS[name].most_steps} for the scheduler {name}")
