"""Count the bytes that a training step saves for its backward pass, at full size, beside the estimate.

    python -m benchmarks.activations

The models are on the meta device, with shapes and dtypes but no values, so that nothing is computed. Saved tensors
are counted by autograd's hooks, each storage once, without the weights. CUDA's autocast and attention are emulated:
norms in fp32, products in the lower dtype, and attention saves only its inputs, its output and one number per row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from benchmarks.flow_models import BARE, bare_base
from benchmarks.random_models import bare_text_encoder, bare_unet
from lora_service.models import template_text_encoder
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.families.sd1 import SD1
from lora_service.models.text_encoders import PromptEmbeds
from lora_service.training.adapters.lora_layers import LayerOptions, lora_layers
from lora_service.training.adapters.lora_targets import targets_in
from lora_service.training.inputs.config import LoraKind, LoraTargets
from lora_service.training.inputs.input_checks import ORIGINAL_TARGETS
from lora_service.training.memory.estimate import encoder_bytes, unet_bytes
from lora_service.training.memory.transformers import transformer_bytes

META = torch.device("meta")
RANK = 16


class _Attention(torch.autograd.Function):
    """Flash attention as far as memory goes: it saves inputs, output and the rows' log-sum-exp."""

    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        rows = torch.empty(query.shape[:3], dtype=torch.float32, device=query.device)
        context.save_for_backward(query, key, value, out, rows)
        return out


class _CudaEmulation(TorchFunctionMode):
    """Emulates, on the meta device, a CUDA device under autocast to ``dtype`` (None: without autocast)."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            inputs = (*args, *(kwargs[name] for name in ("query", "key", "value")[len(args) :]))
            return _Attention.apply(*(_cast(x, self.dtype) for x in inputs[:3]))
        if func in (F.layer_norm, F.group_norm):
            args, kwargs = self._cast_all(args, kwargs, torch.float32)
        elif func in (F.linear, F.conv2d, torch.conv2d, torch.addmm):
            args, kwargs = self._cast_all(args, kwargs, self.dtype)
        return func(*args, **kwargs)

    def _cast_all(self, args: Any, kwargs: Any, dtype: torch.dtype | None) -> tuple[list[Any], dict[str, Any]]:
        target = dtype if self.dtype else None
        return [_cast(x, target) for x in args], {name: _cast(x, target) for name, x in kwargs.items()}


def _cast(value: Any, dtype: torch.dtype | None) -> Any:
    return value.to(dtype) if dtype and isinstance(value, Tensor) else value


def count_unet(
    family: str,
    side: int,
    *,
    dtype: torch.dtype,
    lora: bool,
    checkpointing: bool,
    targets: LoraTargets = ORIGINAL_TARGETS,
    kind: LoraKind = "lora",
) -> int:
    """Return the bytes that the UNet saves in one step on one picture.

    Args:
        dtype: of the weights; below fp32 it is autocast's dtype too.
        lora: stage 2, which trains LoRA layers; otherwise stage 1, which trains token embeddings.
        checkpointing: count the inputs of the checkpointed modules; recomputing them takes memory on top.
    """
    unet, n = _frozen(bare_unet(family), dtype), side // 8
    text = torch.empty(1, 77, unet.config.cross_attention_dim, device=META, dtype=dtype, requires_grad=not lora)
    added = {"text_embeds": text[:, 0, :1280], "time_ids": torch.empty(1, 6, device=META)} if family == "sdxl" else None
    noisy, timesteps = torch.empty(1, 4, n, n, device=META, dtype=dtype), torch.empty(1, device=META)
    with ExitStack() as stack:
        saved = stack.enter_context(_saved_storages(unet, dtype))
        if lora:
            paths = targets_in("unet", unet, targets, SD1)
            stack.enter_context(lora_layers(unet, paths, LayerOptions(RANK, RANK, kind), torch.Generator()))
        if checkpointing:
            unet.train()
            unet.enable_gradient_checkpointing(_checkpoint(saved))
        unet(noisy, timesteps, text, added_cond_kwargs=added)
    return sum(storage.nbytes() for storage in saved.values())


def count_encoder(family: str, part: str, *, dtype: torch.dtype, targets: LoraTargets = ORIGINAL_TARGETS) -> int:
    """Return the bytes that a text encoder with LoRA layers saves in one step on one caption."""
    encoder = _frozen(bare_text_encoder(family, part), dtype)
    paths = targets_in(part, encoder, targets, SD1)
    options = LayerOptions(RANK, RANK)
    with _saved_storages(encoder, dtype) as saved, lora_layers(encoder, paths, options, torch.Generator()):
        encoder(torch.zeros(1, 77, device=META, dtype=torch.long))
    return sum(storage.nbytes() for storage in saved.values())


def count_transformer(
    name: str, side: int, *, dtype: torch.dtype, checkpointing: bool, targets: LoraTargets = ORIGINAL_TARGETS
) -> int:
    """Return the bytes that a transformer with LoRA layers saves in one step on one picture; as :func:`count_unet`."""
    base = bare_base(name, dtype)
    transformer, family = _frozen(base.backbone, dtype), base.family
    n, texts = side // base.vae_scale_factor, base.text.positions
    channels = _latent_channels(base)
    noisy, timesteps = torch.empty(1, channels, n, n, device=META, dtype=dtype), torch.empty(1, device=META)
    shape: tuple[int, ...] = (1, texts, base.text.width)
    if name == "krea2":  # whose embeds are a stack of layers
        layers = transformer.config.num_text_layers
        shape = (1, texts, layers, base.text.width // layers)
    states = torch.empty(shape, device=META, dtype=dtype)
    width = transformer.config.get("pooled_projection_dim")
    pooled = None if width is None else torch.empty(1, width, device=META, dtype=dtype)
    # Qwen-Image's transformer only computes with the mask; Z-Image's picks the states of texts by it.
    mask = torch.ones(1, texts, dtype=torch.bool, device=META if name == "qwen-image" else None)
    text = PromptEmbeds(states, pooled, mask=mask)
    with ExitStack() as stack:
        saved = stack.enter_context(_saved_storages(transformer, dtype))
        paths = targets_in(family.backbone, transformer, targets, family)
        stack.enter_context(lora_layers(transformer, paths, LayerOptions(RANK, RANK), torch.Generator()))
        if checkpointing:
            transformer.train()
            transformer.enable_gradient_checkpointing(_checkpoint(saved))
        stack.enter_context(patch.object(template_text_encoder, "trimmed", lambda embeds: embeds))  # it asks for values
        family.predict(transformer, noisy, timesteps, text, None)
    return sum(storage.nbytes() for storage in saved.values())


def _latent_channels(base: DiffusionBase) -> int:
    config = base.vae.config
    channels = config.get("latent_channels") or config.z_dim
    return int(channels * (base.vae_scale_factor // 8) ** 2)


def _frozen(model: Any, dtype: torch.dtype) -> Any:
    return nn.Module.to(model, dtype).requires_grad_(False)


Storages = dict[int, Any]
"""Storages by their identity."""


@contextmanager
def _saved_storages(model: nn.Module, dtype: torch.dtype) -> Iterator[Storages]:
    """Collect the storages that autograd saves, other than the weights of ``model``."""
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    saved: Storages = {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage
        return tensor

    autocast = None if dtype == torch.float32 else dtype
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor), _CudaEmulation(autocast):
        yield saved


def _checkpoint(saved: Storages) -> Callable[..., Any]:
    """Return a gradient checkpointing function that saves a module's inputs, and nothing inside of it."""

    def run(module: Callable[..., Any], *inputs: Any) -> Any:
        saved.update({x.untyped_storage()._cdata: x.untyped_storage() for x in inputs if isinstance(x, Tensor)})
        with torch.no_grad():
            out = module(*inputs)
        return out.requires_grad_() if isinstance(out, Tensor) else out

    return run


def main() -> None:
    print("GiB saved per picture, counted (estimated), rank 16")
    for family, side in (("sd15", 512), ("sd21", 768), ("sdxl", 1024)):
        for dtype in (torch.bfloat16, torch.float32):
            unet, cells = bare_unet(family), []
            for lora, checkpointing in ((False, False), (True, False), (True, True)):
                counted = count_unet(family, side, dtype=dtype, lora=lora, checkpointing=checkpointing)
                estimated = unet_bytes(unet, side // 8, dtype, checkpointing=checkpointing)
                cells.append(f"{counted / 2**30:.2f} ({estimated / 2**30:.2f})")
            print(f"{family} {side}² {dtype}: stage 1 {cells[0]}, stage 2 {cells[1]}, checkpointed {cells[2]}")
    for family, part in (("sd15", "text_encoder"), ("sd21", "text_encoder"), ("sdxl", "text_encoder_2")):
        counted = count_encoder(family, part, dtype=torch.bfloat16)
        estimated = encoder_bytes(bare_text_encoder(family, part), 77, torch.bfloat16)
        print(f"{family} {part} bf16: {counted / 2**30:.3f} ({estimated / 2**30:.3f})")
    for name in BARE:
        for side in (512, 1024):
            base, cells = bare_base(name), []
            for checkpointing in (False, True):
                counted = count_transformer(name, side, dtype=torch.bfloat16, checkpointing=checkpointing)
                latents = side // base.vae_scale_factor
                estimated = transformer_bytes(base, latents, torch.bfloat16, checkpointing=checkpointing)
                cells.append(f"{counted / 2**30:.2f} ({estimated / 2**30:.2f})")
            print(f"{name} {side}² bf16: {cells[0]}, checkpointed {cells[1]}")


if __name__ == "__main__":
    main()
