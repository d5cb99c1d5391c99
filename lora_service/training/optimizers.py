"""Optimisers and learning rate schedules, by the names of the inputs."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.optimization import get_scheduler

from lora_service.training.config import TrainConfig, warmup_steps


def make_optimizer(
    param_groups: list[dict[str, Any]], config: TrainConfig, device: torch.device
) -> torch.optim.Optimizer:
    """Return the optimiser of ``param_groups``, each with ``params``, ``lr`` and ``weight_decay``."""
    return torch.optim.AdamW(param_groups, betas=(0.9, 0.999), fused=device.type in ("cpu", "cuda"))


def make_lr_scheduler(optimizer: torch.optim.Optimizer, config: TrainConfig, steps: int) -> Any:
    """Return the schedule of the learning rates over a stage of ``steps`` steps."""
    warmup = warmup_steps(config.lr_warmup_steps, steps)
    return get_scheduler(config.lr_scheduler, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
