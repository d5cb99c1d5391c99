"""Optimisers and learning rate schedules, by the names of the inputs.

adamw                fused, https://arxiv.org/abs/1711.05101
adamw8bit            its moments in 8 bit, https://arxiv.org/abs/2110.02861 (bitsandbytes)
prodigy              finds the rate by itself, https://arxiv.org/abs/2306.06101 (prodigyopt); one for each group, as
                     tokens and LoRA are of different sizes
adamw_schedule_free  averages in place of a schedule, https://arxiv.org/abs/2405.15682 (schedulefree)
muon                 orthogonalised steps of matrices, https://kellerjordan.github.io/posts/muon, at AdamW's rates
                     (https://arxiv.org/abs/2502.16982); what is no matrix of the LoRA is AdamW's
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from prodigyopt import Prodigy
from schedulefree import AdamWScheduleFree

from lora_service.errors import InputError
from lora_service.models.quantization import import_bitsandbytes
from lora_service.training.inputs.config import OptimizerName, TrainConfig
from lora_service.training.inputs.resolved_config import warmup_of_stage

TOKENS = "tokens"
"""The name of the new tokens' parameter group."""
ParamGroups = list[dict[str, Any]]
"""Each with ``params``, ``lr``, ``weight_decay`` and a ``name``."""
_BETAS = (0.9, 0.999)
_RATE = 1e-3
"""The rate of groups without one; there are none, but PyTorch and diffusers want it."""


class CombinedOptimizer(torch.optim.Optimizer):
    """Several optimisers as one; its parameter groups are theirs, in their order."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.optimizers = list(optimizers)
        super().__init__(self._groups(), {"lr": _RATE})

    def _groups(self) -> ParamGroups:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take a step of each."""
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all."""
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # type: ignore[override]
        """Load the states of all."""
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.param_groups = self._groups()  # loading makes new ones


def make_optimizer(param_groups: ParamGroups, config: TrainConfig, device: torch.device) -> torch.optim.Optimizer:
    """Return the optimiser that ``config`` asks for, of ``param_groups``."""
    return _OPTIMIZERS[config.optimizer](param_groups, device)


def check_optimizer(config: TrainConfig, device: torch.device) -> None:
    """Check that the optimiser runs on ``device``.

    Raises:
        InputError: it does not, or needs a package that is not installed.
    """
    if config.optimizer != "adamw8bit":
        return
    if find_spec("bitsandbytes") is None:
        expected = "adamw, unless bitsandbytes is installed here (it is in the images for GPUs)"
        raise InputError("optimizer", config.optimizer, expected, code="not_installed")
    if device.type not in ("cuda", "cpu"):
        raise InputError("optimizer", config.optimizer, f"adamw on a {device.type} device", code="wrong_device")


def learning_rates(optimizer: torch.optim.Optimizer) -> list[float]:
    """Return the groups' rates of the last step; Prodigy's are multiplied by what it has found."""
    return [group["lr"] * group.get("d", 1.0) for group in optimizer.param_groups]


def make_lr_scheduler(optimizer: torch.optim.Optimizer, config: TrainConfig, steps: int) -> Any:
    """Return the schedule of the learning rates over a stage of ``steps`` steps."""
    return get_scheduler(
        config.lr_scheduler,
        optimizer,
        num_warmup_steps=warmup_of_stage(config, steps),
        num_training_steps=steps,
        num_cycles=config.lr_cycles,
        power=config.lr_power,
    )


def _adamw(param_groups: ParamGroups, device: torch.device) -> torch.optim.Optimizer:
    return torch.optim.AdamW(param_groups, betas=_BETAS, fused=device.type in ("cpu", "cuda"))


def _adamw8bit(param_groups: ParamGroups, device: torch.device) -> torch.optim.Optimizer:
    return import_bitsandbytes().optim.AdamW8bit(param_groups, betas=_BETAS)


def _prodigy(param_groups: ParamGroups, device: torch.device) -> torch.optim.Optimizer:
    # As for LoRA in its README: bias correction, and no rate of the warm-up in the estimate.
    options = {"betas": _BETAS, "use_bias_correction": True, "safeguard_warmup": True}
    return CombinedOptimizer([Prodigy([group], **options) for group in param_groups])


def _adamw_schedule_free(param_groups: ParamGroups, device: torch.device) -> torch.optim.Optimizer:
    return AdamWScheduleFree(param_groups, lr=_RATE, betas=_BETAS)


def _muon(param_groups: ParamGroups, device: torch.device) -> torch.optim.Optimizer:
    matrices: ParamGroups = []
    others: ParamGroups = []
    for group in param_groups:
        is_matrix = [group["name"] != TOKENS and parameter.dim() == 2 for parameter in group["params"]]
        for taken, of_matrices in ((matrices, True), (others, False)):
            params = [p for p, matrix in zip(group["params"], is_matrix, strict=True) if matrix is of_matrices]
            if params:
                taken.append(group | {"params": params})
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        optimizers.append(torch.optim.Muon(matrices, lr=_RATE, adjust_lr_fn="match_rms_adamw"))
    if others:
        optimizers.append(_adamw(others, device))
    return CombinedOptimizer(optimizers)


_OPTIMIZERS: Mapping[OptimizerName, Callable[[ParamGroups, torch.device], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adamw8bit": _adamw8bit,
    "prodigy": _prodigy,
    "adamw_schedule_free": _adamw_schedule_free,
    "muon": _muon,
}
STATE_BYTES: Mapping[OptimizerName, int] = {
    "adamw": 8, "adamw8bit": 2, "prodigy": 16, "adamw_schedule_free": 8, "muon": 4,
}  # fmt: skip
"""Bytes that an optimiser keeps for a parameter."""
