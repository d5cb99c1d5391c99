"""Full-size models patched with a published LoRA give the outputs that the original implementation gave.

``test_cloneofsimo.py`` makes the same comparison on small models, without files from elsewhere.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lora_service.lora.files import read_lora
from lora_service.lora.patcher import Patcher
from lora_service.lora.scale import Scale
from lora_service.lora.weights import LoraWeights
from tests.named_weights import full_size_text_encoder, full_size_tokenizer, full_size_unet

DATA = Path(__file__).resolve().parents[2] / "../shared/data"
TOLERANCE = 1e-4

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not DATA.is_dir(), reason="the published LoRA and the original's outputs are not beside the repository"
    ),
]


@pytest.fixture(scope="module")
def disney() -> LoraWeights:
    return read_lora(DATA / "loras/lora_disney.safetensors")


@torch.no_grad()
def test_the_unet_draws_as_the_original_patched_it(disney: LoraWeights) -> None:
    golden = load_file(DATA / "golden/unet_disney.safetensors")
    unet = full_size_unet()
    patcher = Patcher({"unet": unet}, {})
    only_unet = LoraWeights({"unet": disney.layers["unet"]})

    def output() -> torch.Tensor:
        return unet(golden["x"], golden["timestep"], golden["encoder_hidden_states"]).sample

    base = output()
    torch.testing.assert_close(base, golden["out_base"], atol=TOLERANCE, rtol=0)
    for scale in (0.5, 1.0):
        patcher.apply([(only_unet, Scale(scale, scale))])
        torch.testing.assert_close(output(), golden[f"out_scale_{scale}"], atol=TOLERANCE, rtol=0)
    patcher.restore()
    assert torch.equal(output(), base)


@torch.no_grad()
def test_the_text_encoder_reads_as_the_original_patched_it(disney: LoraWeights) -> None:
    golden = load_file(DATA / "golden/text_encoder_disney.safetensors")
    encoder = full_size_text_encoder()
    patcher = Patcher({"text_encoder": encoder}, {"text_encoder": full_size_tokenizer()})
    only_text = LoraWeights({"text_encoder": disney.layers["text_encoder"]}, disney.embeddings)

    base = encoder(golden["input_ids_base"]).last_hidden_state
    torch.testing.assert_close(base, golden["out_base"], atol=TOLERANCE, rtol=0)
    for scale in (0.5, 1.0):
        patcher.apply([(only_text, Scale(scale, scale))])
        assert patcher.tokenizers["text_encoder"].convert_tokens_to_ids(["<s1>", "<s2>"]) == [49408, 49409]
        output = encoder(golden["input_ids"]).last_hidden_state
        torch.testing.assert_close(output, golden[f"out_scale_{scale}"], atol=TOLERANCE, rtol=0)
    patcher.restore()
    assert torch.equal(encoder(golden["input_ids_base"]).last_hidden_state, base)
