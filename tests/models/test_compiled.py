"""Compiled modules: the same pictures, and nothing is compiled anew for another LoRA or another size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lora_service.generation.generator import ImageGenerator
from lora_service.generation.request import GenerateRequest
from lora_service.lora.scale import Scale, parse_scale
from lora_service.models.compiled import CompiledModule
from tests.lora.lora_fakes import random_lora
from tests.small_base import hashes, small_base


class CountingBackend:
    """A backend of ``torch.compile`` that counts the programs and runs them as they were traced."""

    def __init__(self) -> None:
        self.programs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        self.programs += 1
        return graph.forward


@pytest.fixture
def backend() -> Any:
    torch._dynamo.reset()
    yield CountingBackend()
    torch._dynamo.reset()


def request(**inputs: Any) -> GenerateRequest:
    return GenerateRequest.of({"prompt": "a dog", "seed": 3, "num_inference_steps": 2, "scheduler": "DDIM"} | inputs)


def test_two_programs_serve_all_shapes(backend: CountingBackend) -> None:
    class Double(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (x * 2,)

    module = CompiledModule(Double(), backend=backend)
    for shape in ((2, 3), (4, 5), (6, 7), (8, 9), (2, 3)):
        x = torch.randn(shape)
        assert torch.equal(module(x)[0], x * 2)
    assert backend.programs == 2


def test_another_lora_scale_size_or_number_compiles_nothing_anew(backend: CountingBackend) -> None:
    base, plain = small_base(), ImageGenerator(small_base())
    before = hashes(base)
    base.compile(backend=backend)
    generator = ImageGenerator(base)
    # A picture alone, several, and one of another size: the compiler takes a batch of one for a shape of its own.
    for inputs in ({}, {"num_outputs": 2, "width": 48}, {"width": 40}):
        generator.generate(request(**inputs), [])
    programs = backend.programs
    loras = [random_lora(base.components, seed=seed) for seed in range(2)]
    for inputs, used in (
        ({}, [(loras[0], Scale(1.0, 1.0))]),
        ({}, [(loras[1], Scale(0.5, 0.5)), (loras[0], Scale(-1.0, 1.0))]),
        ({"width": 64, "height": 40}, [(loras[1], parse_scale("unet.mid:2,steps:0-0.5"))]),
        ({"scheduler": "K_EULER", "num_outputs": 3}, []),
        ({}, []),
    ):
        ours, theirs = (g.generate(request(**inputs), used) for g in (generator, plain))
        for one, other in zip(ours, theirs, strict=True):
            assert np.abs(np.asarray(one.image, int) - np.asarray(other.image, int)).max() <= 1
    assert backend.programs == programs
    generator.patcher.restore()
    assert hashes(base) == before
