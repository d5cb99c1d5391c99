"""Optimisers, schedules, clipping and means of the weights: what each does, and that a stage goes on alike."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any, get_args

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import nn

from lora_service.errors import InputError
from lora_service.training.inputs.config import OptimizerName, TrainConfig
from lora_service.training.inputs.resolved_config import warmup_of_stage
from lora_service.training.losses.batch_loss import BatchLoss
from lora_service.training.optimization import optimizers
from lora_service.training.optimization.loop import LoopSpec, StageRun, run_loop
from lora_service.training.optimization.optimizers import CombinedOptimizer, check_optimizer, make_optimizer
from tests.errors import raises

CPU = torch.device("cpu")
STEPS = 12


def needs(optimizer: str) -> None:
    if optimizer == "adamw8bit":
        pytest.importorskip("bitsandbytes")


def noisy_stage(steps: int = STEPS, **inputs: Any) -> StageRun:
    """A stage that fits a LoRA's two matrices, a convolution's kernel and tokens to fixed ones, with noise."""
    generator, start = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    shapes = {"unet": [(6, 80), (70, 6), (4, 3, 3, 3)], "tokens": [(2, 40)]}
    named = {name: [nn.Parameter(torch.randn(s, generator=start)) for s in of] for name, of in shapes.items()}
    wanted = {name: [torch.randn(p.shape, generator=start) for p in of] for name, of in named.items()}

    def compute_loss(i: int) -> BatchLoss:
        pairs = [(p, w) for name in named for p, w in zip(named[name], wanted[name], strict=True)]
        noise = [0.1 * torch.randn(p.shape, generator=generator) for p, _ in pairs]
        terms = [(p - w - n).square().mean() for (p, w), n in zip(pairs, noise, strict=True)]
        return BatchLoss(torch.stack(terms).sum())

    rate = 1.0 if inputs.get("optimizer") == "prodigy" else 0.05
    groups = [{"params": of, "lr": rate, "weight_decay": 0.01, "name": name} for name, of in named.items()]
    spec = LoopSpec("s", steps, 1, groups, compute_loss, generator=generator)
    return StageRun(spec, TrainConfig.of({"gradient_accumulation_steps": 2} | inputs))


def take(stage: StageRun, steps: int) -> StageRun:
    for _ in range(steps):
        stage.take_step()
    return stage


def learned(stage: StageRun) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in stage.parameters])


CASES: list[dict[str, Any]] = [
    *({"optimizer": name} for name in get_args(OptimizerName)),
    *({"optimizer": name, "lr_warmup_ratio": 0.25} for name in get_args(OptimizerName)),
    {"ema_decay": 0.9},
    {"optimizer": "muon", "ema_decay": 0.9, "lr_scheduler": "cosine_with_restarts"},
    {"optimizer": "prodigy", "lr_scheduler": "polynomial", "clip_by_group": True},
]


@pytest.mark.parametrize("inputs", CASES, ids=str)
def test_a_stage_goes_on_from_its_state_with_every_optimizer(inputs: dict[str, Any]) -> None:
    needs(inputs.get("optimizer", ""))
    whole, first = take(noisy_stage(**inputs), STEPS), take(noisy_stage(**inputs), 5)
    state = copy.deepcopy(first.state_dict())
    second = noisy_stage(**inputs)
    second.load_state_dict(state)
    take(second, STEPS - 5)
    for stage in (whole, second):
        stage.keep_average()
    assert torch.equal(learned(whole), learned(second))
    assert torch.equal(whole.losses["total"], second.losses["total"])


@pytest.mark.parametrize("inputs", CASES, ids=str)
def test_a_look_at_the_weights_that_are_kept_changes_no_step(inputs: dict[str, Any]) -> None:
    needs(inputs.get("optimizer", ""))
    alone, watched = take(noisy_stage(**inputs), STEPS), noisy_stage(**inputs)
    for _ in range(STEPS):
        watched.take_step()
        with watched.evaluating(), watched.evaluating():
            assert not torch.is_grad_enabled()
    assert torch.equal(learned(alone), learned(watched))
    with watched.evaluating():
        kept = learned(watched)
    watched.keep_average()
    assert torch.equal(learned(watched), kept)
    with watched.evaluating():
        assert torch.equal(learned(watched), kept)


@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_every_optimizer_learns(name: OptimizerName) -> None:
    needs(name)
    stage = take(noisy_stage(80, optimizer=name), 80)
    assert stage.losses["total"][-3:].mean() < 0.9 * stage.losses["total"][0]


def test_the_mean_is_that_of_diffusers_and_is_what_is_kept() -> None:
    stage, plain = noisy_stage(ema_decay=0.7), noisy_stage()
    reference = EMAModel(plain.parameters, decay=0.7)
    for _ in range(STEPS):
        plain.take_step()
        reference.step(plain.parameters)
    take(stage, STEPS)
    assert torch.equal(learned(stage), learned(plain))
    stage.keep_average()
    reference.copy_to(plain.parameters)
    assert torch.equal(learned(stage), learned(plain))


def test_the_file_is_of_the_mean() -> None:
    weight = nn.Parameter(torch.zeros(1))
    groups = [{"params": [weight], "lr": 0.1, "weight_decay": 0.0, "name": "unet"}]
    run_loop(LoopSpec("s", 4, 1, groups, lambda i: BatchLoss(weight.sum())), TrainConfig(ema_decay=0.9))
    # The steps' weights are -0.1, -0.2 …; the mean begins at the first, with decays of 2/11, 3/12 and 4/13.
    mean = -0.1
    for step, decay in ((2, 2 / 11), (3, 3 / 12), (4, 4 / 13)):
        mean = decay * mean - (1 - decay) * 0.1 * step
    assert weight.item() == pytest.approx(mean, abs=1e-5)


def test_muon_steps_matrices_of_the_lora_and_adamw_the_rest() -> None:
    stage = noisy_stage(optimizer="muon")
    assert isinstance(stage.optimizer, CombinedOptimizer)
    muon, adamw = stage.optimizer.optimizers
    assert isinstance(muon, torch.optim.Muon)
    shapes = [[tuple(p.shape) for p in group["params"]] for o in (muon, adamw) for group in o.param_groups]
    assert shapes == [[(6, 80), (70, 6)], [(4, 3, 3, 3)], [(2, 40)]]
    # Norm pull reads the last group's rate, which is the tokens'.
    assert stage.optimizer.param_groups[-1]["name"] == "tokens"


def test_prodigy_finds_a_rate_for_each_group_and_tells_it() -> None:
    seen = list[list[float]]()
    stage = noisy_stage(80, optimizer="prodigy")
    object.__setattr__(stage.spec, "after_step", lambda lrs: seen.append(list(lrs)))
    take(stage, 80)
    assert seen[0][0] < 1e-4 < seen[-1][0] < 1
    assert seen[-1][0] != seen[-1][1]


def test_schedules_that_were_alike_differ() -> None:
    def rates(scheduler: str, **inputs: Any) -> list[float]:
        config = TrainConfig.of({"lr_scheduler": scheduler} | inputs)
        optimizer = make_optimizer([{"params": [nn.Parameter(torch.zeros(1))], "lr": 0.1, "name": "unet"}], config, CPU)
        schedule, seen = optimizers.make_lr_scheduler(optimizer, config, 40), list[float]()
        for _ in range(40):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return seen

    assert rates("cosine_with_restarts") != rates("cosine")
    assert rates("cosine_with_restarts", lr_cycles=1) == rates("cosine")
    assert sum(b > a for a, b in pairwise(rates("cosine_with_restarts", lr_cycles=4))) == 3
    assert rates("polynomial") != rates("linear")
    assert rates("polynomial", lr_power=1) == pytest.approx(rates("linear"), abs=1e-4)
    assert rates("polynomial", lr_power=4)[20] < rates("polynomial")[20]


@pytest.mark.parametrize(
    ("inputs", "steps", "expected"),
    [
        ({"lr_warmup_ratio": 0.1}, 700, 70),
        ({"lr_warmup_ratio": 0.1}, 50, 5),
        ({"lr_warmup_ratio": 1}, 50, 25),
        ({"lr_warmup_steps": 7}, 50, 7),
        ({}, 50, 0),
    ],
)
def test_a_warm_up_is_a_share_of_its_stage(inputs: dict[str, Any], steps: int, expected: int) -> None:
    assert warmup_of_stage(TrainConfig.of(inputs), steps) == expected


def clipped_norms(**inputs: Any) -> tuple[float, float]:
    """The gradients' norms of a group with a norm of 100 and one of 0.5 after clipping."""
    large, small = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(1))
    groups = [
        {"params": [p], "lr": 0.1, "weight_decay": 0.0, "name": name}
        for p, name in ((large, "unet"), (small, "tokens"))
    ]
    spec = LoopSpec("s", 1, 1, groups, lambda i: BatchLoss(50 * large.sum() + 0.5 * small.sum()))
    stage, norms = StageRun(spec, TrainConfig.of(inputs)), list[float]()
    stage.optimizer.register_step_pre_hook(
        lambda *_: norms.extend(float(p.grad.norm()) for p in (large, small) if p.grad is not None)
    )
    stage.take_step()
    return norms[0], norms[1]


def test_clipped_together_a_large_gradient_shrinks_a_small_one_and_apart_it_does_not() -> None:
    assert clipped_norms() == pytest.approx((1.0, 0.005), rel=1e-3)
    assert clipped_norms(clip_by_group=True) == pytest.approx((1.0, 0.5), rel=1e-3)
    assert clipped_norms(clip_by_group=True, max_grad_norm=0.25) == pytest.approx((0.25, 0.25), rel=1e-3)
    assert clipped_norms(max_grad_norm=0) == pytest.approx((100.0, 0.5))


def test_adamw8bit_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig.of({"optimizer": "adamw8bit"})
    find: Callable[[str], Any] = lambda name: object()  # noqa: E731
    monkeypatch.setattr(optimizers, "find_spec", find)
    check_optimizer(config, torch.device("cuda"))
    with raises(InputError, field="optimizer", code="wrong_device"):
        check_optimizer(config, torch.device("mps"))
    monkeypatch.setattr(optimizers, "find_spec", lambda name: None)
    with raises(InputError, field="optimizer", code="not_installed"):
        check_optimizer(config, torch.device("cuda"))
    check_optimizer(TrainConfig.of({"optimizer": "muon"}), torch.device("mps"))
