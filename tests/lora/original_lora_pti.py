"""The original lora_pti in short: which modules it numbers, the files it writes, and the outputs of its patched models.

Written from lora_diffusion/lora.py of https://github.com/cloneofsimo/lora (d84074b), as a reference for our own code;
it uses none of ours. The original wrapped the modules in layers of its own, so that a forward pass computed
``module(x) + up(down(x)) * scale``; hooks do the same here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn

UNET_CLASSES = ("CrossAttention", "Attention", "GEGLU")
EXTENDED_UNET_CLASSES = ("ResnetBlock2D", *UNET_CLASSES)
TEXT_ENCODER_CLASSES = ("CLIPAttention",)

Pair = tuple[Tensor, Tensor]
"""``up (out, rank[, 1, 1])`` and ``down (rank, in[, kh, kw])``."""


def find_modules(model: nn.Module, classes: Sequence[str]) -> list[tuple[str, nn.Module]]:
    """Return (module path, module) in the order of the original's numbers, as ``_find_modules_v2`` yields them.

    Convolutions are counted in the extended form alone; the plain form's classes have none.
    """
    paths = {module: path for path, module in model.named_modules()}
    targets = [module for module in model.modules() if type(module).__name__ in classes]
    return [
        (paths[layer], layer)
        for target in targets
        for _, layer in target.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]


def register_as_diffusers_0_14(unet: nn.Module) -> None:
    """Bring a UNet's transformer blocks to the order in which diffusers up to 0.14 registered their modules.

    It was attn1, ff, attn2; since 0.15 it is attn1, attn2, ff. The computation does not depend on it.
    """
    for block in unet.modules():
        if type(block).__name__ == "BasicTransformerBlock":
            block._modules["attn2"] = block._modules.pop("attn2")


def small_sd15_unet(seed: int = 0) -> UNet2DConditionModel:
    """Return a random UNet with all modules of Stable Diffusion 1.5, of few channels each."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32, 64, 64),
            layers_per_block=2,
            norm_num_groups=8,
            attention_head_dim=4,
            cross_attention_dim=32,
        ).eval()


@dataclass
class OriginalLora:
    """Numbered pairs per component, and learned tokens.

    Attributes:
        classes: component -> names of the classes whose layers are numbered.
        pairs: component -> pair of each number.
        tokens: token -> row ``(width,)`` of the text encoder's embedding table.
    """

    classes: dict[str, Sequence[str]] = field(default_factory=dict)
    pairs: dict[str, list[Pair]] = field(default_factory=dict)
    tokens: dict[str, Tensor] = field(default_factory=dict)

    def train(self, component: str, model: nn.Module, classes: Sequence[str], rank: int = 2, seed: int = 0) -> None:
        """Draw random pairs for every module that the original numbers."""
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator) * 0.1

        self.classes[component] = classes
        self.pairs[component] = []
        for _, layer in find_modules(model, classes):
            out_channels, in_channels, *kernel = layer.weight.shape
            up, down = draw(out_channels, rank, *[1] * len(kernel)), draw(rank, in_channels, *kernel)
            self.pairs[component].append((up, down))

    def save(self, path: Path) -> Path:
        """Write the file of ``save_safeloras_with_embeds``."""
        tensors: dict[str, Tensor] = {}
        strings: dict[str, str] = {}
        for component, pairs in self.pairs.items():
            strings[component] = json.dumps(list(self.classes[component]))
            for number, (up, down) in enumerate(pairs):
                strings[f"{component}:{number}:rank"] = str(down.shape[0])
                tensors[f"{component}:{number}:up"], tensors[f"{component}:{number}:down"] = up, down
        for token, row in self.tokens.items():
            strings[token], tensors[token] = "<embed>", row
        save_file(tensors, path, metadata=strings)
        return path


def loaded_pairs(tensors: Mapping[str, Tensor], component: str) -> list[Pair]:
    """Return a file's pairs by number, as ``parse_safeloras`` reads them."""
    count = sum(key.startswith(f"{component}:") and key.endswith(":up") for key in tensors)
    return [(tensors[f"{component}:{n}:up"].float(), tensors[f"{component}:{n}:down"].float()) for n in range(count)]


@contextmanager
def patched(model: nn.Module, classes: Sequence[str], pairs: Sequence[Pair], scale: float) -> Iterator[None]:
    """Compute ``module(x) + up(down(x)) * scale`` in every numbered module, as the original's injected layers do."""
    modules = find_modules(model, classes)
    assert len(modules) == len(pairs)
    with ExitStack() as hooks:
        for (_, module), (up, down) in zip(modules, pairs, strict=True):
            hooks.enter_context(_removed(module.register_forward_hook(_injected(module, up, down, scale))))
        yield


@contextmanager
def _removed(handle: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _injected(module: nn.Module, up: Tensor, down: Tensor, scale: float):
    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if isinstance(module, nn.Conv2d):
            hidden = nn.functional.conv2d(inputs[0], down, None, module.stride, module.padding, module.dilation)
            return output + nn.functional.conv2d(hidden, up) * scale
        return output + nn.functional.linear(nn.functional.linear(inputs[0], down), up) * scale

    return hook
