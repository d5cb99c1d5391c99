"""The training loop of the tools: its optimizers, its time budget, and that a resumed run ends like any other."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tools.embedded import loop
from tools.embedded.loop import MuonWithAdamW, Plan, fit
from tools.embedded.muon import Muon


def _is_matrix(name: str, weights: nn.Parameter) -> bool:
    return weights.ndim > 1


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(128, 4))


def _train(plan: Plan, checkpoint: Path, stop: int | None = None) -> dict[str, torch.Tensor]:
    """Return the final weights; ``stop`` is the step that is interrupted."""
    model = _model()

    def loss_of_step(step: int, generator: torch.Generator) -> torch.Tensor:
        if step == stop:
            raise KeyboardInterrupt
        x = torch.randn(8, 3, 4, 4, generator=generator).contiguous(memory_format=torch.channels_last)
        return (model(x) - x.mean(dim=(2, 3)).sum(dim=1, keepdim=True)).square().mean()

    fit(model, loss_of_step, plan, checkpoint)
    return model.state_dict()


@pytest.mark.parametrize("uses_muon", [_is_matrix, lambda _name, _weights: False])
def test_a_resumed_run_ends_like_an_uninterrupted_one(tmp_path: Path, uses_muon) -> None:
    plan = Plan(12, 1e-2, warmup=2, ema_decay=0.9, uses_muon=uses_muon, save_every=2)
    for stop in (5, 8):
        with pytest.raises(KeyboardInterrupt):
            _train(plan, tmp_path / "stopped.pt", stop)
    resumed, straight = _train(plan, tmp_path / "stopped.pt"), _train(plan, tmp_path / "straight.pt")
    assert resumed.keys() == straight.keys()
    for name, weights in straight.items():
        torch.testing.assert_close(resumed[name], weights, rtol=0, atol=0)


def test_muon_updates_convolutions_and_matrices_by_orthogonal_steps() -> None:
    learning_rate = 1e-2
    model = _model().to(memory_format=torch.channels_last)
    optimizer = MuonWithAdamW(model, Plan(1, learning_rate, uses_muon=_is_matrix))
    before = {name: weights.detach().clone() for name, weights in model.named_parameters()}
    model(torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(1))).square().sum().backward()
    optimizer.step(learning_rate)
    for name, weights in model.named_parameters():
        assert weights.grad is None
        if not _is_matrix(name, weights):
            continue
        update = (
            (weights.detach() - before[name] * (1 - learning_rate * 0.01))
            .permute(0, *range(2, weights.ndim), 1)
            .flatten(1)
        )
        # 0.2 √max(out, in) is AdamW's size; Newton and Schulz's iteration leaves singular values of 0.5 to 1.5.
        values = torch.linalg.svdvals(update) / (learning_rate * 0.2 * max(update.shape) ** 0.5)
        assert 0.3 < values[len(values) // 2] < 1.5
        assert values[0] < 1.6


def test_muon_refuses_convolutions_that_are_not_channels_last() -> None:
    with pytest.raises(RuntimeError, match="view"):
        MuonWithAdamW(_model(), Plan(1, 1e-2, uses_muon=_is_matrix))


def test_batched_matrices_are_updated_as_by_pytorchs_muon() -> None:
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
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still until the test advances it."""
    seconds = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: seconds[0])
    return seconds


def _train_for(
    seconds: float, clock: list[float], checkpoint: Path, pace: float, stop: int | None = None
) -> list[float]:
    """Return the learning rates of the steps, of ``pace`` seconds each; ``stop`` is the step that is interrupted."""
    model, rates = _model(), []
    plan = Plan.within(seconds, 1e-2, warmup=2, ema_decay=0.9)
    original_step = MuonWithAdamW.step

    def recorded_step(self: MuonWithAdamW, learning_rate: float) -> None:
        rates.append(learning_rate)
        original_step(self, learning_rate)

    def loss_of_step(step: int, generator: torch.Generator) -> torch.Tensor:
        if step == stop:
            raise KeyboardInterrupt
        clock[0] += pace
        return model(torch.randn(8, 3, 4, 4, generator=generator)).square().mean()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MuonWithAdamW, "step", recorded_step)
        fit(model, loss_of_step, plan, checkpoint)
    return rates


def test_a_run_with_a_time_budget_ends_in_time_with_its_learning_rate_decayed(
    tmp_path: Path, clock: list[float]
) -> None:
    rates = _train_for(100, clock, tmp_path / "state.pt", pace=0.25)
    assert clock[0] == pytest.approx(100, abs=0.5)
    assert len(rates) == pytest.approx(400, abs=2)
    assert rates[10:190] == [1e-2] * 180
    assert rates[190:] == sorted(rates[190:], reverse=True)
    assert rates[-1] < 2e-4
    assert torch.load(tmp_path / "state.pt")["step"] == len(rates)


def test_a_resumed_run_uses_the_remaining_time_budget(tmp_path: Path, clock: list[float]) -> None:
    with pytest.raises(KeyboardInterrupt):
        _train_for(100, clock, tmp_path / "state.pt", pace=0.25, stop=300)
    saved = torch.load(tmp_path / "state.pt")
    assert 200 < saved["step"] <= 300
    clock[0] = 1_000.0
    rates = _train_for(100, clock, tmp_path / "state.pt", pace=0.5)
    assert clock[0] == pytest.approx(1_000 + 100 - saved["seconds"], abs=1)
    assert rates[0] < 1e-2
    assert rates[-1] < 2e-4
    assert max(_train_for(100, clock, tmp_path / "state.pt", pace=0.5), default=0) < 2e-4
