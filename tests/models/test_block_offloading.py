"""Blocks that wait on the host: drawing and training compute the same, with one block on the device at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lora_service.errors import BaseModelError, InputError, SettingError
from lora_service.generation.generator import ImageGenerator
from lora_service.generation.request import GenerateRequest
from lora_service.lora.scale import Scale
from lora_service.lora.weights import LoraLayer, LoraWeights
from lora_service.models import loading
from lora_service.models.block_offloading import BlockOffloading
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.loading import assemble, load_base
from lora_service.settings import Settings
from lora_service.training import trainer
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.memory import offloading
from lora_service.training.memory.estimate import MemorySavings, choose_savings
from lora_service.training.trainer import Trainer
from tests.errors import raises
from tests.small_base import hashes, picture_zip, small_base
from tests.small_flow import FLOW_FAMILIES, flow_pipeline_of, small_flow_base, small_flow_components

CPU = torch.device("cpu")
SIDES = {"width": 32, "height": 32, "num_inference_steps": 2, "seed": 1}


class ApartBlocks(BlockOffloading):
    """A device of its own beside the host, on which every weight is another tensor."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.most, self.came = 0, 0

    def _come(self, block: torch.nn.Module, inputs: Any) -> None:
        super()._come(block, inputs)
        self.came += 1
        self.most = max(self.most, len(self._copies))

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.clone()


class LostBlocks(ApartBlocks):
    """A host that holds no numbers, so that whoever uses a weight there gets none."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._values = dict[int, Tensor]()

    def _to_host(self, tensor: Tensor) -> Tensor:
        host = torch.full_like(tensor, float("nan"))
        self._values[host.data_ptr()] = tensor
        return host

    def _to_device(self, tensor: Tensor) -> Tensor:
        return self._values[tensor.data_ptr()].clone()


def lora_of(base: DiffusionBase, seed: int) -> LoraWeights:
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for path, layer in base.backbone.named_modules():
        if isinstance(layer, torch.nn.Linear) and "blocks" in path:
            shapes = ((2, layer.in_features), (layer.out_features, 2))
            layers[path] = LoraLayer(*(torch.randn(shape, generator=generator) for shape in shapes), 2.0)
    return LoraWeights({"transformer": layers})


def drawn(generator: ImageGenerator, loras: Any) -> np.ndarray:
    return np.asarray(generator.generate(GenerateRequest.of({"prompt": "a dog", **SIDES}), loras)[0].image, float)


@pytest.mark.parametrize("family", FLOW_FAMILIES)
def test_pictures_are_the_same_one_block_at_a_time(family: str) -> None:
    base = small_flow_base(family)
    expected = drawn(ImageGenerator(base), [])
    blocks = LostBlocks(base.blocks, CPU)
    assert len(base.blocks) >= 2
    with blocks.waiting():
        assert np.array_equal(drawn(ImageGenerator(base), []), expected)
        assert all(tensor.isnan().all() for tensor in base.blocks[0].parameters())
    assert blocks.most == max(len([*block.parameters(), *block.buffers()]) for block in base.blocks)
    assert np.array_equal(drawn(ImageGenerator(base), []), expected)


def test_loras_are_merged_into_blocks_that_wait_and_out_of_them() -> None:
    base = small_flow_base("flux2-klein")
    plain = ImageGenerator(base)
    loras = [[(lora_of(base, seed), Scale(0.1, 0.1))] for seed in (1, 2)]
    expected = [drawn(plain, each) for each in (loras[0], loras[1], [], loras[0])]
    plain.patcher.restore()
    assert not np.array_equal(expected[0], expected[1])
    before = hashes(base)
    with ApartBlocks(base.blocks, CPU).waiting():
        generator = ImageGenerator(base)
        found = [drawn(generator, each) for each in (loras[0], loras[1], [], loras[0])]
        generator.patcher.restore()
    for ours, theirs in zip(found, expected, strict=True):
        assert np.array_equal(ours, theirs)
    assert hashes(base) == before


@pytest.mark.parametrize("inputs", [{}, {"lora_kind": "dora"}, {"preservation": "output", "class_word": "dog"}])
def test_a_training_makes_the_same_file(
    inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[LostBlocks] = []

    def make(*args: Any) -> LostBlocks:
        made.append(ApartBlocks(*args) if inputs.get("lora_kind") == "dora" else LostBlocks(*args))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(offloading, "BlockOffloading", make)
    files = []
    for blocks in (True, False):
        monkeypatch.setattr(
            trainer, "choose_savings", lambda *_, blocks=blocks: MemorySavings(checkpointing=True, blocks=blocks)
        )
        base, folder = small_flow_base("zimage"), tmp_path / str(blocks)
        folder.mkdir()
        before = hashes(base)
        config = TrainConfig.of({"task": "object", "seed": 1, "max_train_steps_tuning": 2, "samples": 1} | inputs)
        files.append(Trainer(base, folder).run(picture_zip(folder / "p.zip"), config).path.read_bytes())
        assert hashes(base) == before
    assert files[0] == files[1]
    (waiting,) = made
    assert waiting.came > 2 * 2 * len(base.blocks)  # forward and anew for the backward pass, and for the samples


def test_blocks_that_always_wait_need_checkpointing() -> None:
    base = assemble("small", small_flow_components("zimage"), None, CPU, torch.float32, blocks_wait=True)
    config = TrainConfig.of({"task": "object"})
    assert choose_savings(base, config, print) == MemorySavings(checkpointing=True)
    with raises(InputError, field="gradient_checkpointing"):
        choose_savings(base, config.model_copy(update={"gradient_checkpointing": "off"}), print)


def test_the_setting_is_refused_where_it_does_nothing(tmp_path: Path) -> None:
    with raises(SettingError, field="OFFLOAD_BLOCKS"):
        load_base(Settings(offload_blocks=True, device="cpu"))
    with raises(SettingError, field="OFFLOAD_BLOCKS"):
        assemble("small", replace(small_flow_components("zimage"), family=small_base().family), None, CPU,
                 torch.float32, blocks_wait=True)  # fmt: skip


def test_a_base_that_does_not_fit_is_told_what_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError

    flow_pipeline_of(small_flow_base("zimage")).save_pretrained(tmp_path)
    monkeypatch.setattr(loading, "assemble", fail)
    with raises(BaseModelError, code="out_of_memory", field="BASE_MODEL") as caught:
        load_base(Settings(base_model=str(tmp_path), device="cpu"))
    assert "OFFLOAD_BLOCKS=1" in str(caught.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: on a CPU nothing moves")
def test_the_memory_of_a_card_is_free_while_blocks_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda")
    base = assemble("small", small_flow_components("zimage"), small_flow_base("zimage").defaults, device, torch.float32)
    held, sizes = torch.cuda.memory_allocated(), BlockOffloading(base.blocks, device).block_bytes
    expected = drawn(ImageGenerator(base), [])
    with BlockOffloading(base.blocks, device).waiting():
        assert torch.cuda.memory_allocated() <= held - sum(sizes)
        assert np.abs(drawn(ImageGenerator(base), []) - expected).max() <= 1
        monkeypatch.setattr(trainer, "choose_savings", lambda *_: MemorySavings(checkpointing=True))
        config = TrainConfig.of({"task": "object", "seed": 1, "max_train_steps_tuning": 2, "samples": 0})
        losses = Trainer(base, tmp_path / "job").run(picture_zip(tmp_path / "p.zip"), config).stages["stage 2"].losses
        assert np.isfinite(losses).all()
    assert all(tensor.device.type == "cuda" for block in base.blocks for tensor in block.parameters())
