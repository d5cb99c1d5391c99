"""The training loop of the tools: how it steps, and that a stopped run ends like one that was not."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tools.embedded import loop
from tools.embedded.loop import Plan, Stepper, fit
from tools.embedded.muon import Muon


def _is_matrix(name: str, weights: nn.Parameter) -> bool:
    return weights.ndim > 1


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(128, 4))


def _train(plan: Plan, state: Path, stop: int | None = None) -> dict[str, torch.Tensor]:
    """The weights in the end; ``stop`` is the step that is interrupted."""
    model = _model()

    def loss_of_step(step: int, generator: torch.Generator) -> torch.Tensor:
        if step == stop:
            raise KeyboardInterrupt
        x = torch.randn(8, 3, 4, 4, generator=generator).contiguous(memory_format=torch.channels_last)
        return (model(x) - x.mean(dim=(2, 3)).sum(dim=1, keepdim=True)).square().mean()

    fit(model, loss_of_step, plan, state)
    return model.state_dict()


@pytest.mark.parametrize("orthogonal", [_is_matrix, lambda _name, _weights: False])
def test_a_stopped_run_ends_like_one_that_was_not(tmp_path: Path, orthogonal) -> None:
    plan = Plan(12, 1e-2, warmup=2, average=0.9, orthogonal=orthogonal, save_every=2)
    for stop in (5, 8):
        with pytest.raises(KeyboardInterrupt):
            _train(plan, tmp_path / "stopped.pt", stop)
    resumed, straight = _train(plan, tmp_path / "stopped.pt"), _train(plan, tmp_path / "straight.pt")
    assert resumed.keys() == straight.keys()
    for name, weights in straight.items():
        torch.testing.assert_close(resumed[name], weights, rtol=0, atol=0)


def test_muon_moves_convolutions_and_matrices_along_all_directions_alike() -> None:
    rate = 1e-2
    model = _model().to(memory_format=torch.channels_last)
    stepper = Stepper(model, Plan(1, rate, orthogonal=_is_matrix))
    before = {name: weights.detach().clone() for name, weights in model.named_parameters()}
    model(torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(1))).square().sum().backward()
    stepper.step(rate)
    for name, weights in model.named_parameters():
        assert weights.grad is None
        if not _is_matrix(name, weights):
            continue
        move = (weights.detach() - before[name] * (1 - rate * 0.01)).permute(0, *range(2, weights.ndim), 1).flatten(1)
        # 0.2 √max(out, in) is AdamW's size; Newton and Schulz's iteration leaves singular values of 0.5 to 1.5.
        values = torch.linalg.svdvals(move) / (rate * 0.2 * max(move.shape) ** 0.5)
        assert 0.3 < values[len(values) // 2] < 1.5
        assert values[0] < 1.6


def test_muon_refuses_convolutions_that_it_could_not_move() -> None:
    with pytest.raises(RuntimeError, match="view"):
        Stepper(_model(), Plan(1, 1e-2, orthogonal=_is_matrix))


def test_matrices_of_one_shape_step_as_with_pytorchs_muon() -> None:
    generator = torch.Generator().manual_seed(3)
    shapes = ((6, 20), (20, 6), (6, 20), (5, 5))
    ours = [torch.randn(shape, generator=generator) for shape in shapes]
    theirs = [nn.Parameter(matrix.clone()) for matrix in ours]
    muon = Muon(ours, 0.1)
    reference = torch.optim.Muon(theirs, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        gradients = [torch.randn(shape, generator=generator) for shape in shapes]
        for matrix, gradient in zip(theirs, gradients, strict=True):
            matrix.grad = gradient.clone()
        muon.step(gradients, 1e-2)
        reference.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=0, atol=2e-3)  # the iteration is in bf16


@pytest.fixture
def seconds_fly(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still until the test moves it on."""
    clock = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: clock[0])
    return clock


def _train_for(seconds: float, clock: list[float], state: Path, pace: float, stop: int | None = None) -> list[float]:
    """The rates of the steps, each of ``pace`` seconds; ``stop`` is the step that is interrupted."""
    model, rates = _model(), []
    plan = Plan.within(seconds, 1e-2, warmup=2, average=0.9)
    step_with = Stepper.step

    def noted(self: Stepper, rate: float) -> None:
        rates.append(rate)
        step_with(self, rate)

    def loss_of_step(step: int, generator: torch.Generator) -> torch.Tensor:
        if step == stop:
            raise KeyboardInterrupt
        clock[0] += pace
        return model(torch.randn(8, 3, 4, 4, generator=generator)).square().mean()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stepper, "step", noted)
        fit(model, loss_of_step, plan, state)
    return rates


def test_a_run_of_seconds_ends_in_time_with_its_rate_decayed(tmp_path: Path, seconds_fly: list[float]) -> None:
    rates = _train_for(100, seconds_fly, tmp_path / "state.pt", pace=0.25)
    assert seconds_fly[0] == pytest.approx(100, abs=0.5)
    assert len(rates) == pytest.approx(400, abs=2)
    assert rates[10:190] == [1e-2] * 180
    assert rates[190:] == sorted(rates[190:], reverse=True)
    assert rates[-1] < 2e-4
    assert torch.load(tmp_path / "state.pt")["step"] == len(rates)


def test_a_stopped_run_of_seconds_goes_on_for_those_that_are_left(tmp_path: Path, seconds_fly: list[float]) -> None:
    with pytest.raises(KeyboardInterrupt):
        _train_for(100, seconds_fly, tmp_path / "state.pt", pace=0.25, stop=300)
    saved = torch.load(tmp_path / "state.pt")
    assert 200 < saved["step"] <= 300
    seconds_fly[0] = 1_000.0
    rates = _train_for(100, seconds_fly, tmp_path / "state.pt", pace=0.5)
    assert seconds_fly[0] == pytest.approx(1_000 + 100 - saved["seconds"], abs=1)
    assert rates[0] < 1e-2
    assert rates[-1] < 2e-4
    assert max(_train_for(100, seconds_fly, tmp_path / "state.pt", pace=0.5), default=0) < 2e-4
