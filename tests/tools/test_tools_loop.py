"""The training loop of the tools: how it steps, and that a stopped run ends like one that was not."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tools.embedded.loop import Plan, Stepper, fit


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
