"""Samplers and the spacing of their noise levels, against diffusers' own classes."""

import inspect

import diffusers
import pytest
import torch

from lora_service.errors import InputError
from lora_service.generation.request import GenerateRequest
from lora_service.generation.scheduler_classes import make_scheduler
from lora_service.generation.schedulers import SCHEDULERS, SCHEDULES, check_scheduler
from tests.errors import raises
from tests.small_base import small_base

CONFIG = small_base().scheduler_config


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_list_knows_which_of_diffusers_classes_can_be_spaced_otherwise(name: str) -> None:
    parameters = inspect.signature(getattr(diffusers, SCHEDULERS[name].class_name).__init__).parameters
    options = {option for schedule in SCHEDULES.values() for option in schedule}
    assert SCHEDULERS[name].schedules is options.issubset(parameters)


@pytest.mark.parametrize("schedule", ["karras", "exponential", "beta"])
@pytest.mark.parametrize("name", [n for n, c in SCHEDULERS.items() if c.schedules and c.schedule == "default"])
def test_a_schedule_spaces_the_noise_levels_as_diffusers_does(name: str, schedule: str) -> None:
    choice = SCHEDULERS[name]
    ours = make_scheduler(name, CONFIG, schedule=schedule)
    theirs = getattr(diffusers, choice.class_name).from_config(CONFIG, **choice.options, **SCHEDULES[schedule])
    plain = make_scheduler(name, CONFIG)
    for scheduler in (ours, theirs, plain):
        scheduler.set_timesteps(8)
    assert torch.equal(ours.sigmas, theirs.sigmas)
    assert not torch.allclose(ours.sigmas, plain.sigmas)


def test_a_name_that_stands_for_a_schedule_keeps_it() -> None:
    named, chosen = (
        make_scheduler(name, CONFIG, schedule=schedule)
        for name, schedule in (("DPMSolverMultistepKarras", "default"), ("DPMSolverMultistep", "karras"))
    )
    assert dict(named.config) == dict(chosen.config)
    check_scheduler("DPMSolverMultistepKarras", 10, "karras")
    with raises(InputError, field="schedule") as caught:
        check_scheduler("DPMSolverMultistepKarras", 10, "beta")
    assert "DPMSolverMultistep" in caught.value.expected


@pytest.mark.parametrize("name", ["DDIM", "PNDM", "K_EULER_ANCESTRAL", "LCM"])
def test_a_schedule_that_a_sampler_cannot_have_is_refused_with_those_that_can(name: str) -> None:
    with raises(InputError, code="unsupported_schedule", field="schedule") as caught:
        GenerateRequest.of({"scheduler": name, "schedule": "karras"})
    assert "K_EULER, DPMSolverMultistep, KLMS" in caught.value.expected


@pytest.mark.parametrize("name", ["DPMSolverMultistepSDE", "DPMSolverSinglestepSDE", "KDPM2Ancestral"])
def test_stochastic_samplers_draw_each_image_from_its_own_generator(name: str) -> None:
    samples = []
    for seeds in ([1, 2], [2]):
        scheduler = make_scheduler(name, CONFIG)
        scheduler.set_timesteps(4)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        x = torch.cat([torch.randn(1, 4, 4, 4, generator=each) for each in generators]) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            noise = torch.tanh(scheduler.scale_model_input(x, t))
            x = scheduler.step(noise, t, x, generator=generators).prev_sample
        samples.append(x[-1])
    torch.testing.assert_close(*samples)


def test_sampling_of_a_base_with_zero_terminal_snr_begins_at_the_last_timestep() -> None:
    config = {key: value for key, value in CONFIG.items() if key != "_use_default_values"}
    config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "leading", "prediction_type": "v_prediction"}
    for name in ("DDIM", "K_EULER", "DPMSolverMultistep", "UniPC"):
        scheduler = make_scheduler(name, config)
        scheduler.set_timesteps(10)
        assert scheduler.timesteps[0] == 999
