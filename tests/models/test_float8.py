"""UNets in 8-bit floats: near the original, and a LoRA is merged in full and taken out again to the bit."""

from __future__ import annotations

import torch
from torch import nn

from lora_service.lora.patcher import Patcher
from lora_service.lora.scale import Scale
from lora_service.models.families.sd1 import SD1
from lora_service.models.float8 import FLOAT8, Float8Linear
from lora_service.models.quantization import quantize_backbone
from tests.lora.lora_fakes import random_lora
from tests.small_models import small_models

CPU = torch.device("cpu")


def test_the_linear_layers_hold_a_byte_a_weight_and_predict_nearly_the_same() -> None:
    models = small_models("sd1")
    expected = models.unet_output()
    plain = {path: layer.weight.clone() for path, layer in models.unet.named_modules() if type(layer) is nn.Linear}
    quantize_backbone(models.unet, "fp8", torch.float32, CPU, SD1.kept)
    layers = {path: layer for path, layer in models.unet.named_modules() if isinstance(layer, Float8Linear)}
    assert plain.keys() - layers.keys() == {path for path in plain if path.startswith("time_embedding")}
    for path, layer in layers.items():
        assert layer.weight.dtype == FLOAT8
        restored = layer.weight.float() * layer.weight_scale.float()
        largest = plain[path].abs().amax(dim=1, keepdim=True)
        assert ((restored - plain[path]).abs() <= largest / 16).all()  # half a step of 3 bits, below the largest
    output = models.unet_output()
    assert (output - expected).abs().mean() < 0.1 * expected.abs().mean()


def test_a_lora_is_merged_in_full_and_taken_out_to_the_bit() -> None:
    models = small_models("sd1")
    quantize_backbone(models.unet, "fp8", torch.float32, CPU, SD1.kept)
    before = {key: (value.dtype, value.clone()) for key, value in models.unet.state_dict().items()}
    bare = models.unet_output()
    patcher = Patcher(models.components, models.tokenizers)
    lora = random_lora(models.components)
    patcher.apply([(lora, Scale(1e-3, 1.0))])
    for path, change in lora.layers["unet"].items():
        layer = models.unet.get_submodule(path)
        if isinstance(layer, Float8Linear):
            original = before[f"{path}.weight"][1].float() * layer.weight_scale.float()
            expected = original + 1e-3 * change.delta(original)
            torch.testing.assert_close(layer.weight.data, expected, atol=1e-6, rtol=1e-5)
    assert not torch.equal(models.unet_output(), bare)
    patcher.apply([(lora, Scale(0.5, 1.0))])
    patcher.restore()
    after = models.unet.state_dict()
    for key, (dtype, value) in before.items():
        assert after[key].dtype == dtype
        assert torch.equal(after[key].float(), value.float())
    assert torch.equal(models.unet_output(), bare)
