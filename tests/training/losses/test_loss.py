"""The loss's parts against diffusers' own formulas."""

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from lora_service.training.losses import loss

SCHEDULE = DDPMScheduler(
    beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction"
)
TIMESTEPS = torch.tensor([0, 10, 500, 999])


def noise_and_latents() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 4, 8, 8, generator=generator), torch.randn(4, 4, 8, 8, generator=generator)


def test_noise_is_added_as_diffusers_adds_it() -> None:
    noise, latents = noise_and_latents()
    ours = loss.add_noise(latents, noise, SCHEDULE.alphas_cumprod[TIMESTEPS])
    torch.testing.assert_close(ours, SCHEDULE.add_noise(latents, noise, TIMESTEPS))


def test_v_is_the_velocity_of_diffusers() -> None:
    noise, latents = noise_and_latents()
    ours = loss.target(latents, noise, SCHEDULE.alphas_cumprod[TIMESTEPS], "v_prediction")
    torch.testing.assert_close(ours, SCHEDULE.get_velocity(latents, noise, TIMESTEPS))


def test_epsilon_is_the_noise() -> None:
    noise, latents = noise_and_latents()
    assert loss.target(latents, noise, SCHEDULE.alphas_cumprod[TIMESTEPS], "epsilon") is noise


def test_min_snr_makes_the_same_loss_of_whatever_is_predicted() -> None:
    noise, latents = noise_and_latents()
    model_pred, alphas = latents + 0.1 * noise, SCHEDULE.alphas_cumprod[TIMESTEPS]
    noisy, a = loss.add_noise(latents, noise, alphas), alphas.view(-1, 1, 1, 1)
    said = {"sample": model_pred, "epsilon": (noisy - a.sqrt() * model_pred) / (1 - a).sqrt()}
    said["v_prediction"] = a.sqrt() * said["epsilon"] - (1 - a).sqrt() * model_pred
    losses = [
        loss.masked_loss(told, loss.target(latents, noise, alphas, kind), loss.snr_weights(alphas, 5.0, kind), None)
        for kind, told in said.items()
    ]
    torch.testing.assert_close(losses[1:], losses[:1] * 2)


@pytest.mark.parametrize(("kind", "divisor"), [("epsilon", 0), ("v_prediction", 1)])
def test_min_snr_weights_are_those_of_the_training_scripts(kind: str, divisor: int) -> None:
    snr = compute_snr(SCHEDULE, TIMESTEPS)
    expected = torch.stack([snr, torch.full_like(snr, 5.0)], dim=1).min(dim=1).values / (snr + divisor)
    torch.testing.assert_close(loss.snr_weights(SCHEDULE.alphas_cumprod[TIMESTEPS], 5.0, kind), expected)


@pytest.mark.parametrize(("kind", "expected"), [("epsilon", 1.0), ("v_prediction", 0.0)])
def test_a_step_without_signal_has_the_weight_that_its_neighbours_tend_to(kind: str, expected: float) -> None:
    schedule = DDPMScheduler(beta_schedule="scaled_linear", rescale_betas_zero_snr=True)
    assert loss.snr_weights(schedule.alphas_cumprod[-1:], 5.0, kind).tolist() == [expected]


def test_gamma_0_weighs_all_alike() -> None:
    assert loss.snr_weights(SCHEDULE.alphas_cumprod[TIMESTEPS], 0.0, "epsilon").tolist() == [1.0] * 4


@pytest.mark.parametrize("emphasis", [-0.3, 0.0, 0.3])
def test_timesteps_follow_the_stated_density_over_the_whole_range(emphasis: float) -> None:
    drawn = loss.sample_timesteps(200_000, 1000, emphasis, torch.Generator().manual_seed(0))
    assert drawn.min() == 0
    assert drawn.max() == 999
    # The density 1 + k (2u − 1) has the mean 1/2 + k/6.
    assert drawn.float().mean().item() / 1000 == pytest.approx(0.5 + emphasis / 6, abs=0.003)


def test_offset_noise_shifts_whole_channels() -> None:
    like = torch.zeros(64, 4, 16, 16)
    plain = loss.sample_noise(like, 0.0, torch.Generator().manual_seed(0))
    shifted = loss.sample_noise(like, 0.5, torch.Generator().manual_seed(0))
    difference = shifted - plain
    assert difference.std(dim=(2, 3)).max().item() < 1e-5
    assert difference.mean(dim=(2, 3)).std().item() == pytest.approx(0.5, abs=0.06)


def test_without_a_mask_the_loss_is_the_mean_squared_error() -> None:
    model_pred, wanted = noise_and_latents()
    ours = loss.masked_loss(model_pred, wanted, torch.ones(4), None)
    torch.testing.assert_close(ours, torch.nn.functional.mse_loss(model_pred, wanted))


def test_a_mask_makes_its_inside_count_and_keeps_the_mean() -> None:
    wanted, mask = torch.zeros(1, 4, 8, 8), torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    inside, outside = wanted.clone(), wanted.clone()
    inside[..., :4] = 1
    outside[..., 4:] = 1
    losses = [loss.masked_loss(g, wanted, torch.ones(1), mask).item() for g in (inside, outside, inside + outside)]
    assert losses[0] / losses[1] == pytest.approx(1 / loss.MASK_FLOOR)
    assert losses[2] == pytest.approx(1.0)
