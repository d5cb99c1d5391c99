"""Those of diffusers' samplers that know predicted noise and velocity only, for bases that predict the latents.

Their configuration has to say ``epsilon``.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import EulerAncestralDiscreteScheduler, PNDMScheduler


class EulerAncestral(EulerAncestralDiscreteScheduler):  # type: ignore[misc]
    """It works on ``latents + σ · noise``."""

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,  # pipelines look for this name before they hand one over
        return_dict: bool = True,
    ) -> Any:
        """One step from ``sample``; ``model_output`` is the predicted latents."""
        if self.step_index is None:
            self._init_step_index(timestep)
        noise = (sample - model_output) / self.sigmas[self.step_index]
        return super().step(noise, timestep, sample, generator=generator, return_dict=return_dict)


class PNDM(PNDMScheduler):  # type: ignore[misc]
    """It works on ``√ᾱ · latents + √(1 − ᾱ) · noise``."""

    def step(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, return_dict: bool = True) -> Any:
        """One step from ``sample``; ``model_output`` is the predicted latents."""
        alpha = self.alphas_cumprod[timestep]
        noise = (sample - alpha.sqrt() * model_output) / (1 - alpha).sqrt()
        return super().step(noise, timestep, sample, return_dict)
