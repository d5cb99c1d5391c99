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
    "LCM": Sampler("LCMScheduler"),
}


def make_sampler(name: str, config: Mapping[str, Any]) -> Any:
    """The sampler ``name`` on a base's noise schedule ``config``.

    Raises:
        InputError: there is no such sampler.
    """
    if name not in SAMPLERS:
        raise InputError("scheduler", name, f"one of {', '.join(SAMPLERS)}")
    return SAMPLERS[name].make(config)
