"""diffusers' schedulers with a base's scheduler config, and own ones where diffusers' cannot do what is asked."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from diffusers import (
    EulerAncestralDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
)
from diffusers.schedulers.scheduling_utils import SchedulerOutput

from lora_service.errors import InputError
from lora_service.generation.schedulers import SCHEDULERS, scheduler_options

_ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
"""Weights of the newest model output and those before it, by their number."""
_ZERO_TERMINAL_SNR = "rescale_betas_zero_snr"
"""Key of a scheduler config whose last timestep has no signal (https://arxiv.org/abs/2305.08891, section 3.1)."""


def make_scheduler(name: str, config: Mapping[str, Any], *, img2img: bool = False, schedule: str = "default") -> Any:
    """Make the scheduler that :data:`SCHEDULERS` lists as ``name``, with a base's own scheduler config.

    Args:
        name: the scheduler.
        config: the base's scheduler config.
        img2img: whether the scheduler starts in the middle of its timesteps; diffusers' multistep schedulers with a
            history of their own start it wrongly there.
        schedule: the spacing of its noise levels, one of :data:`~lora_service.generation.schedulers.SCHEDULES`.

    Raises:
        InputError: the config ends without signal and diffusers' class ignores that.
    """
    choice = SCHEDULERS[name]
    if not _supports(choice.class_name, config):
        names = ", ".join(other for other, c in SCHEDULERS.items() if _supports(c.class_name, config))
        expected = f"one of {names} for a base whose noise schedule ends without signal"
        raise InputError("scheduler", name, expected, code="unsupported_noise_schedule")
    options = scheduler_options(name, schedule)
    if has_zero_terminal_snr(config):
        # Sampling has to begin where there is no signal (https://arxiv.org/abs/2305.08891, section 3.3).
        options["timestep_spacing"] = "trailing"
    if config.get("prediction_type") == "sample" and choice.class_name in _X0_SCHEDULERS:
        scheduler_class: Any = _X0_SCHEDULERS[choice.class_name]
        options["prediction_type"] = "epsilon"
    else:
        scheduler_class = _OWN_SCHEDULERS.get(choice.class_name) or getattr(diffusers, choice.class_name)
    scheduler = scheduler_class.from_config(config, **options)
    if isinstance(scheduler, PLMSScheduler):
        scheduler.img2img = img2img
    return scheduler


def make_flow_scheduler(name: str, config: Mapping[str, Any]) -> Any:
    """Make the scheduler ``name``, one of a family's, for a base of flow matching, with its scheduler config."""
    return getattr(diffusers, SCHEDULERS[name].flow_class_name).from_config(config)


def has_zero_terminal_snr(config: Mapping[str, Any]) -> bool:
    """Return whether the last timestep of a scheduler config has no signal."""
    return bool(config.get(_ZERO_TERMINAL_SNR))


def _supports(class_name: str, config: Mapping[str, Any]) -> bool:
    parameters = inspect.signature(getattr(diffusers, class_name).__init__).parameters
    return not has_zero_terminal_snr(config) or _ZERO_TERMINAL_SNR in parameters


class X0EulerAncestralScheduler(EulerAncestralDiscreteScheduler):  # type: ignore[misc]
    """Euler's ancestral scheduler for a UNet that predicts the latents x0 of ``x0 + σ · noise``.

    diffusers' own takes predicted noise and velocity only, so it is made with the prediction type ``epsilon``.
    """

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,  # pipelines pass a generator only where they see this name
        return_dict: bool = True,
    ) -> Any:
        """Take one step from ``sample``; ``model_output`` is the predicted latents."""
        if self.step_index is None:
            self._init_step_index(timestep)
        noise = (sample - model_output) / self.sigmas[self.step_index]
        return super().step(noise, timestep, sample, generator=generator, return_dict=return_dict)


class PLMSScheduler(PNDMScheduler):  # type: ignore[misc]
    """PNDM without Runge-Kutta steps, which may start at any of its timesteps.

    diffusers' own takes its second timestep twice, the second time to improve the first step. A pipeline that starts in
    the middle leaves these two out, and then every step is taken from a timestep too far. With ``img2img`` no timestep
    is taken twice, and the order of the Adams-Bashforth steps (https://arxiv.org/abs/2202.09778) rises with
    their history, from one.
    """

    img2img = False
    timesteps: torch.Tensor
    ets: list[torch.Tensor]

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Set the timesteps of a whole run."""
        super().set_timesteps(num_inference_steps, device)
        if self.img2img:
            self.timesteps = self.timesteps.unique().flip(0)

    def step_plms(
        self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, return_dict: bool = True
    ) -> Any:
        """Take one step from ``sample``; ``model_output`` is the predicted noise or velocity."""
        if not self.img2img:
            return super().step_plms(model_output, timestep, sample, return_dict)
        self.ets = [*self.ets[-3:], model_output]
        weights = _ADAMS_BASHFORTH[len(self.ets)]
        output = sum(weight * each for weight, each in zip(weights, reversed(self.ets), strict=True))
        previous = timestep - self.config.num_train_timesteps // self.num_inference_steps
        sample = self._get_prev_sample(sample, timestep, previous, output)
        return SchedulerOutput(prev_sample=sample) if return_dict else (sample,)


class LMSScheduler(LMSDiscreteScheduler):  # type: ignore[misc]
    """The linear multistep scheduler, which may start at any of its timesteps.

    diffusers' own takes the order of a step from the step's number, although a run that starts in the middle has no
    history yet, and then leaves out the coefficients that it has no derivative for.
    """

    def step(
        self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, order: int = 4, return_dict: bool = True
    ) -> Any:
        """Take one step from ``sample``, of an order that the history allows."""
        return super().step(model_output, timestep, sample, min(order, len(self.derivatives) + 1), return_dict)


class X0PNDMScheduler(PLMSScheduler):
    """PNDM for a UNet that predicts the latents x0 of ``√ᾱ · x0 + √(1 − ᾱ) · noise``; made with ``epsilon`` too."""

    def step(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, return_dict: bool = True) -> Any:
        """Take one step from ``sample``; ``model_output`` is the predicted latents."""
        alpha = self.alphas_cumprod[timestep]
        noise = (sample - alpha.sqrt() * model_output) / (1 - alpha).sqrt()
        return super().step(noise, timestep, sample, return_dict)


class X0KDPM2Scheduler(KDPM2DiscreteScheduler):  # type: ignore[misc]
    """DPM-Solver-2 for a UNet that predicts the latents x0 of ``x0 + σ · noise``; made with ``epsilon`` too."""

    def step(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, return_dict: bool = True) -> Any:
        """Take half a step from ``sample``; ``model_output`` is the predicted latents."""
        if self.step_index is None:
            self._init_step_index(timestep)
        sigmas = self.sigmas if self.state_in_first_order else self.sigmas_interpol
        return super().step((sample - model_output) / sigmas[self.step_index], timestep, sample, return_dict)


class X0KDPM2AncestralScheduler(KDPM2AncestralDiscreteScheduler):  # type: ignore[misc]
    """The ancestral DPM-Solver-2 for a UNet that predicts latents; made with ``epsilon`` too."""

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> Any:
        """Take half a step from ``sample``; ``model_output`` is the predicted latents."""
        if self.step_index is None:
            self._init_step_index(timestep)
        first = self.state_in_first_order
        sigma = self.sigmas[self.step_index] if first else self.sigmas_interpol[self.step_index - 1]
        noise = (sample - model_output) / sigma
        return super().step(noise, timestep, sample, generator=generator, return_dict=return_dict)


_X0_SCHEDULERS: dict[str, Any] = {
    "EulerAncestralDiscreteScheduler": X0EulerAncestralScheduler,
    "PNDMScheduler": X0PNDMScheduler,
    "KDPM2DiscreteScheduler": X0KDPM2Scheduler,
    "KDPM2AncestralDiscreteScheduler": X0KDPM2AncestralScheduler,
}
"""Schedulers for bases that predict the latents, by the diffusers class that cannot do that."""
_OWN_SCHEDULERS: dict[str, Any] = {"PNDMScheduler": PLMSScheduler, "LMSDiscreteScheduler": LMSScheduler}
"""Schedulers that may start in the middle, by the diffusers class that may not."""
