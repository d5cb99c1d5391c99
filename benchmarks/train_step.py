"""Compare our training step with a reference loop: cached latents, PEFT layers, forward, backward, AdamW.

    python -m benchmarks.train_step              the embedded model
    python -m benchmarks.train_step --full       a full-size SD 1.5 with random weights, at 128²
    python -m benchmarks.train_step --full sdxl --side 1024 --device cuda

Ours and the reference loop alternate in one run; the result is the ratio of their medians.
"""

from __future__ import annotations

import argparse
import copy
import resource
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import peft
import torch
from PIL import Image
from torch import nn

from benchmarks import random_models
from lora_service.dataset.training_images import TrainingImage
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.families.sd1 import SD1
from lora_service.models.loading import load_base
from lora_service.settings import Settings
from lora_service.training.adapters.lora_layers import LayerOptions, lora_layers
from lora_service.training.adapters.lora_targets import learning_targets, targets_in
from lora_service.training.adapters.textual_inversion import added_tokens, initial_embeddings
from lora_service.training.callbacks.training_progress import ProgressReporter
from lora_service.training.context import TrainingContext
from lora_service.training.data.latent_cache import cache_latents
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.inputs.input_checks import ORIGINAL_TARGETS
from lora_service.training.inputs.resolved_config import resolve_config
from lora_service.training.optimization.captured_gradients import CapturedGradients, CudaGraphs, PassRecorder
from lora_service.training.stages import train_lora, train_textual_inversion

RANK = 16
TOKENS = ("<s1>", "<s2>")


@dataclass(frozen=True)
class Comparison:
    """One stage of ours and of the reference; each function runs a number of steps and returns seconds per step."""

    ours: Callable[[int], float]
    reference: Callable[[int], float]

    def ratio(self, steps: int, rounds: int) -> str:
        """Measure both alternately, and return a line with the medians and their ratio."""
        for warm_up in (self.ours, self.reference):
            warm_up(2)
        pairs = [(self.ours(steps), self.reference(steps)) for _ in range(rounds)]
        ours, reference = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratios = sorted(a / b for a, b in pairs)
        times = f"ours {ours:.4f} s, reference {reference:.4f} s"
        return f"{times}, ratio {ours / reference:.3f} ({ratios[0]:.2f}–{ratios[-1]:.2f})"


def comparisons(base: DiffusionBase, side: int, batch: int, *, cuda_graphs: bool = False) -> dict[str, Comparison]:
    """Return the comparisons of both stages, on batches of ``batch`` pictures; ours with recorded steps if asked."""
    inputs = {"task": "object", "lora_rank": RANK, "seed": 1, "continue_inversion": False, "train_batch_size": batch}
    config = TrainConfig.of(inputs)
    resolved = resolve_config(config, base.defaults, "ohwx", 1)
    image = Image.effect_noise((side, side), 80).convert("RGB")
    pictures = tuple(  # as many as a batch, which is smaller where there are fewer
        TrainingImage(str(i), image, ("a photo of {}",), None, (0, 0, side, side), (side, side)) for i in range(batch)
    )
    cache = cache_latents(pictures, base, flip=True, color_jitter=False, seed=1)
    rows = initial_embeddings(base, TOKENS, (), torch.Generator().manual_seed(0))
    sizes = None if cache[0].sizes is None else cache[0].sizes[0, :1].expand(batch, -1)
    reference = ReferenceLoop(base, cache[0].mean[0, :1].expand(batch, -1, -1, -1), sizes)

    def run_stage(steps: int, stage: str) -> float:
        callbacks = [ProgressReporter(lambda progress: None)]
        generator = torch.Generator().manual_seed(0)
        field = {"tokens": "max_train_steps_ti", "tuning": "max_train_steps_tuning"}[stage]
        stage_config = replace(resolved, config=resolved.config.model_copy(update={field: steps}))
        with added_tokens(base, TOKENS, rows) as tokens, ExitStack() as stack:
            gradients = CapturedGradients(PassRecorder(CudaGraphs().record, print)) if cuda_graphs else None
            context = TrainingContext(
                base, pictures, cache, stage_config, tokens.text, _autocast(base), gradients=gradients
            )
            if stage == "tokens":
                return train_textual_inversion(context, tokens, callbacks).seconds / steps
            layers = {
                name: stack.enter_context(
                    lora_layers(
                        model, learning_targets(base, name, ORIGINAL_TARGETS), LayerOptions(RANK, RANK), generator
                    )
                )
                for name, model in base.components.items()
            }
            return train_lora(context, layers, tokens, callbacks).seconds / steps

    return {
        "tokens": Comparison(lambda n: run_stage(n, "tokens"), reference.tokens),
        "tuning": Comparison(lambda n: run_stage(n, "tuning"), reference.tuning),
    }


class ReferenceLoop:
    """A minimal training loop in plain PyTorch and PEFT, on copies of the models that share the frozen weights."""

    def __init__(self, base: DiffusionBase, latents: torch.Tensor, sizes: torch.Tensor | None) -> None:
        shared = {id(p): p for part in base.components.values() for p in part.parameters()}
        copies = {name: copy.deepcopy(part, dict(shared)) for name, part in base.components.items()}
        self.unet: Any = copies.pop("unet")
        self.encoders: list[Any] = list(copies.values())
        self.alphas, self.latents = base.noise_schedule.alphas_cumprod.to(base.device), latents
        self.autocast = _autocast(base)
        ids = base.text.tokenize(["a photo of it"] * len(latents)).to(base.device)
        self.ids, self.sizes = list(ids.by_encoder.values()), sizes
        # Before PEFT wraps them for good: a deleted adapter leaves its layers behind.
        self.targets = [list(targets_in("unet", self.unet, ORIGINAL_TARGETS, SD1))]
        self.targets += [list(targets_in("text_encoder", encoder, ORIGINAL_TARGETS, SD1)) for encoder in self.encoders]

    def tokens(self, steps: int) -> float:
        """Train two token embeddings, and return seconds per step."""
        tables = [encoder.get_input_embeddings() for encoder in self.encoders]
        rows = [nn.Parameter(torch.randn(2, t.embedding_dim, device=self.latents.device) * 0.02) for t in tables]
        for encoder, table, row in zip(self.encoders, tables, rows, strict=True):
            encoder.set_input_embeddings(_TrainedEmbedding(table, row))
        try:
            return self._run(steps, rows)
        finally:
            for encoder, table in zip(self.encoders, tables, strict=True):
                encoder.set_input_embeddings(table)

    def tuning(self, steps: int) -> float:
        """Train LoRA layers of the UNet and the text encoders, and return seconds per step."""
        models = [self.unet, *self.encoders]
        for model, targets in zip(models, self.targets, strict=True):
            model.add_adapter(peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets))
        parameters = [p for model in models for n, p in model.named_parameters() if "lora_" in n]
        for parameter in parameters:
            parameter.requires_grad_(True)
        try:
            return self._run(steps, parameters)
        finally:
            for encoder in self.encoders:
                encoder.delete_adapter("default")
            self.unet.delete_adapters("default")

    def _run(self, steps: int, parameters: list[nn.Parameter]) -> float:
        optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
        device = self.latents.device
        _synchronize(device)
        started = time.monotonic()
        for _ in range(steps):
            noise, t = torch.randn_like(self.latents), torch.randint(1000, (len(self.latents),), device=device)
            a = self.alphas[t].view(-1, 1, 1, 1)
            noisy = (a.sqrt() * self.latents + (1 - a).sqrt() * noise).to(self.unet.dtype)
            with torch.autocast(device.type, self.autocast) if self.autocast else nullcontext():
                model_pred = self._predict(noisy, t)
            (model_pred.float() - noise).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        _synchronize(device)
        return (time.monotonic() - started) / steps

    def _predict(self, noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if self.sizes is None:
            return self.unet(noisy, t, self.encoders[0](self.ids[0])[0]).sample
        outputs = [e(ids, output_hidden_states=True) for e, ids in zip(self.encoders, self.ids, strict=True)]
        states = torch.cat([out.hidden_states[-2] for out in outputs], dim=-1)
        added = {"text_embeds": outputs[-1].text_embeds, "time_ids": self.sizes}
        return self.unet(noisy, t, states, added_cond_kwargs=added).sample


def _autocast(base: DiffusionBase) -> torch.dtype | None:
    return None if base.dtype == torch.float32 else base.dtype


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _TrainedEmbedding(nn.Module):
    """A token embedding whose rows at positions 4 and 5 of the sequence are the trained ones."""

    def __init__(self, table: nn.Module, rows: nn.Parameter) -> None:
        super().__init__()
        self.table, self.rows = table, rows

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        embeds = self.table(ids)
        return torch.cat([embeds[:, :4], self.rows.to(embeds.dtype).expand(len(embeds), -1, -1), embeds[:, 6:]], dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", choices=random_models.DEFAULTS, nargs="?", const="sd15", help="a family, full size")
    parser.add_argument("--side", type=int, default=128, help="with --full: side of the pictures in pixels")
    parser.add_argument("--batch", type=int, default=1, help="pictures per step")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cuda-graphs", action="store_true", help="ours with recorded steps; recording is timed too")
    parser.add_argument("--steps", type=int, help="steps per turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    started = time.monotonic()
    side = arguments.side if arguments.full else 64
    settings = Settings(base_model="embedded", device=arguments.device)
    device = torch.device(arguments.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    base = (
        random_models.base(arguments.full, side, dtype, device, small_vae=True)
        if arguments.full
        else load_base(settings, for_training=True)
    )
    loaded = time.monotonic() - started
    print(
        f"{base.name}, {side}², rank {RANK}, batch {arguments.batch}, {arguments.threads} thread(s); "
        f"loaded in {loaded:.1f} s"
    )
    for name, comparison in comparisons(base, side, arguments.batch, cuda_graphs=arguments.cuda_graphs).items():
        print(
            f"{name}: {comparison.ratio(arguments.steps or (3 if arguments.full else 40), arguments.rounds)}",
            flush=True,
        )
    if arguments.device == "cuda":
        print(f"peak GPU memory, both loops: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    print(
        f"peak memory of the process, both loops: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB"
    )


if __name__ == "__main__":
    main()
