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
class Sampler:
    """One of diffusers' schedulers: the class's name, and options that make it what its name promises.

    ``from_latents`` is the class in ``lora_service/generation/from_latents.py`` that takes its place
    on a base that predicts the latents, where diffusers' own does not know how.
    """

    scheduler: str
    options: Mapping[str, Any] = field(default_factory=dict)
    most_steps: int = 500
    from_latents: str = ""

    def make(self, config: Mapping[str, Any]) -> Any:
        """The scheduler on a base's own noise schedule ``config``."""
        if self.from_latents and config.get("prediction_type") == "sample":
            from lora_service.generation import from_latents

            return getattr(from_latents, self.from_latents).from_config(
                config, **self.options, prediction_type="epsilon"
            )
        return self._kind.from_config(config, **self.options)

    def follows(self, config: Mapping[str, Any]) -> bool:
        """Whether it keeps to the noise schedule ``config``: some classes leave out that it ends without signal."""
        known = inspect.signature(self._kind.__init__).parameters
        return not config.get(_ENDS_WITHOUT_SIGNAL) or _ENDS_WITHOUT_SIGNAL in known

    @property
    def _kind(self) -> Any:
        import diffusers

        return getattr(diffusers, self.scheduler)


SAMPLERS: dict[str, Sampler] = {
    "DDIM": Sampler("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "K_EULER": Sampler("EulerDiscreteScheduler"),
    "DPMSolverMultistep": Sampler("DPMSolverMultistepScheduler"),
    "K_EULER_ANCESTRAL": Sampler("EulerAncestralDiscreteScheduler", from_latents="EulerAncestral"),
    "PNDM": Sampler("PNDMScheduler", {"skip_prk_steps": True}, from_latents="PNDM"),
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


def check_schedule(name: str, config: Mapping[str, Any]) -> None:
    """Raises ``InputError`` when the sampler would draw on another noise schedule than the base's own ``config``."""
    if not SAMPLERS[name].follows(config):
        able = ", ".join(other for other, sampler in SAMPLERS.items() if sampler.follows(config))
        raise InputError("scheduler", name, f"one of {able} for a base whose noise schedule ends without signal")
