"""The training of the embedded model's adapter, for two steps."""

from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from lora_service.models.defaults import EMBEDDED
from tools.embedded import adapter
from tools.embedded.loop import Plan


def test_training_changes_the_adapter_and_not_the_unet(tmp_path: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(EMBEDDED, safety_checker=None, dtype=torch.float32)
    before = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    pictures = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    trained = adapter.train(pipeline, pictures, ["a red star"] * 4, Plan(2, 1e-3, warmup=1), tmp_path)
    fresh = adapter.new_adapter(pipeline.unet.config.block_out_channels).state_dict()
    assert any(not torch.equal(value, fresh[name]) for name, value in trained.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in pipeline.unet.state_dict().items())
