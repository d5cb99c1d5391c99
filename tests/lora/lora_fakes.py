"""Random LoRAs for small models, comparisons of LoRAs and of models, and files as other tools write them."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lora_service.lora.weights import LoraLayer, LoraWeights

TOKEN_NAMES = ("<s1>", "<s2>")


def is_attention(path: str, module: nn.Module) -> bool:
    """Return True for the projections that most LoRAs change."""
    return isinstance(module, nn.Linear) and ("attn" in path and "mlp" not in path)


def is_cloneofsimo_target(path: str, module: nn.Module) -> bool:
    """Return True for the modules that the cloneofsimo format numbers: attention and GEGLU projections."""
    return is_attention(path, module) or path.endswith("ff.net.0.proj")


def is_convolution(path: str, module: nn.Module) -> bool:
    """Return True for the modules that LoCon adds."""
    return isinstance(module, nn.Conv2d)


def random_lora(
    components: Mapping[str, nn.Module],
    *,
    rank: int = 4,
    alpha: float | None = None,
    targets: Callable[[str, nn.Module], bool] = is_attention,
    tokens: tuple[str, ...] = (),
    seed: int = 0,
) -> LoraWeights:
    """Return a LoRA of the target modules of each component; its values are fp16 numbers: fp16 files lose nothing."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) * 0.1).half().float()

    def layer(module: nn.Module) -> LoraLayer:
        out_channels, in_channels, *kernel = module.weight.shape
        ones = [1] * len(kernel)
        down, up = draw(rank, in_channels, *kernel), draw(out_channels, rank, *ones)
        return LoraLayer(down, up, float(rank) if alpha is None else alpha)

    layers = {
        component: {
            path.removeprefix("text_model."): layer(module)
            for path, module in model.named_modules()
            if path and targets(path, module)
        }
        for component, model in components.items()
    }
    embeddings = {
        name: {
            component: draw(model.get_input_embeddings().weight.shape[1])
            for component, model in components.items()
            if component != "unet"
        }
        for name in tokens
    }
    return LoraWeights({component: modules for component, modules in layers.items() if modules}, embeddings)


def weights_of(components: Mapping[str, nn.Module]) -> dict[str, dict[str, Tensor]]:
    """Return component -> module path as in a LoRA -> weight, as the models have them now."""
    return {
        component: {
            path.removeprefix("text_model."): module.weight.detach()
            for path, module in model.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d)
        }
        for component, model in components.items()
    }


def state_of(components: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return every parameter and buffer, copied."""
    return {
        f"{component}.{name}": tensor.clone()
        for component, model in components.items()
        for name, tensor in model.state_dict().items()
    }


def assert_same_state(before: Mapping[str, Tensor], components: Mapping[str, nn.Module]) -> None:
    """Assert that every parameter and buffer has the same bytes."""
    after = state_of(components)
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(_bytes(before[name]), _bytes(after[name]))] == []


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def assert_same_changes(first: LoraWeights, second: LoraWeights, **tolerance: float) -> None:
    """Assert that both change the same weights by the same amounts, and know the same tokens."""
    assert {c: set(layers) for c, layers in first.layers.items()} == {
        c: set(layers) for c, layers in second.layers.items()
    }
    for component, path, layer in first:
        weight = torch.zeros(layer.shape)
        torch.testing.assert_close(second.layers[component][path].delta(weight), layer.delta(weight), **tolerance)
    assert first.tokens == second.tokens
    for name, rows in first.embeddings.items():
        for component, row in rows.items():
            torch.testing.assert_close(second.embeddings[name][component].float(), row.float())


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    """Write a safetensors file as other tools do."""
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, path, metadata=dict(metadata or {}) or None)
    return path


def raw_file(path: Path, header: object, data: bytes = b"") -> Path:
    """Write a safetensors file with any header, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path
