"""Train the embedded model's T2I-Adapter for line drawings: ``python -m tools.embedded.adapter``.

The UNet is frozen; the adapter learns, from pictures of the synthetic dataset and their lines as
``lora_service.generation.control.condition_image`` traces them, what to add to its features (Mou et al., 2023,
https://arxiv.org/abs/2302.08453). It serves sketches, Canny's edges and line art alike. An interrupted run resumes
where it was.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline, T2IAdapter
from PIL import Image

from lora_service.generation.control.condition_image import make_condition_image
from lora_service.models.control_registry import LINE_TYPES, AdapterType
from tools.embedded.diffusion import MAX_LOSS_WEIGHT, token_ids
from tools.embedded.loop import Plan, fit
from tools.embedded.pool import SIZE, load_pool, to_tensor
from tools.embedded.vae import PATCH

BATCH = 8
CAPTION_DROPOUT = 0.5
"""Share of empty captions: more than for the UNet, so that the adapter learns to tell shapes by the lines alone."""
ENCODE_CHUNK = 64


def new_adapter(channels: tuple[int, ...]) -> T2IAdapter:
    """Return an untrained adapter for one channel of lines; ``channels`` are the UNet's."""
    torch.manual_seed(1)
    return T2IAdapter(
        in_channels=1,
        channels=list(channels),
        num_res_blocks=2,
        downscale_factor=PATCH,
        adapter_type="full_adapter",
    )


def line_drawings(pictures: np.ndarray, adapter_type: AdapterType) -> torch.Tensor:
    """Return the lines of uint8 ``pictures`` ``(n, 64, 64, 3)`` as uint8 ``(n, 1, 64, 64)``."""
    traced = (make_condition_image(Image.fromarray(picture), adapter_type, (SIZE, SIZE)).image for picture in pictures)
    return torch.from_numpy(np.stack([np.asarray(image)[None, :, :, 0] for image in traced]))


def train(
    pipeline: StableDiffusionPipeline, pictures: np.ndarray, captions: list[str], plan: Plan, work: Path
) -> T2IAdapter:
    """Train an adapter on uint8 ``pictures`` ``(n, 64, 64, 3)`` with their captions."""
    unet, vae = pipeline.unet.requires_grad_(False).eval(), pipeline.vae.eval()
    adapter = new_adapter(unet.config.block_out_channels)
    with torch.inference_mode():
        chunks = (to_tensor(pictures[i : i + ENCODE_CHUNK]) for i in range(0, len(pictures), ENCODE_CHUNK))
        latents = torch.cat([vae.encode(x).latent_dist.mean for x in chunks]) * vae.config.scaling_factor
        ids = token_ids(pipeline.tokenizer, ["", *captions])
        states = torch.cat([pipeline.text_encoder(chunk)[0] for chunk in ids.split(ENCODE_CHUNK)]).half()
    latents, states = latents.clone(), states.clone()  # inference tensors cannot be saved for a backward pass
    drawings = [line_drawings(pictures, each) for each in LINE_TYPES]
    alphas_cumprod = pipeline.scheduler.alphas_cumprod

    def loss_of_step(step: int, generator: torch.Generator) -> torch.Tensor:
        integers = partial(torch.randint, generator=generator)
        indices = integers(len(latents), (BATCH,))
        # Mostly early ones, at which the structure is decided (Mou et al., section 3.4).
        share = 1 - torch.rand(BATCH, generator=generator) ** 3
        timesteps = (share * len(alphas_cumprod)).long().clamp(max=len(alphas_cumprod) - 1)
        alpha = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        noise = torch.randn(BATCH, *latents.shape[1:], generator=generator)
        clean = latents[indices]
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        dropped = torch.rand(BATCH, generator=generator) < CAPTION_DROPOUT
        prompt_embeds = states[torch.where(dropped, 0, indices + 1)].float()
        kinds = integers(len(drawings), (BATCH,)).tolist()
        lines = torch.stack([drawings[kind][i] for kind, i in zip(kinds, indices.tolist(), strict=True)]).float() / 255
        with torch.autocast("cpu", torch.bfloat16):
            features = adapter(lines)
            model_pred = unet(noisy, timesteps, prompt_embeds, down_intrablock_additional_residuals=features).sample
        return ((model_pred.float() - clean).square() * (1 / (1 - alpha)).clamp(max=MAX_LOSS_WEIGHT)).mean()

    fit(adapter, loss_of_step, plan, work / "adapter.pt")
    return adapter


def _is_matrix(name: str, weights: torch.nn.Parameter) -> bool:
    return weights.ndim > 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--base", type=Path, default=Path("lora_service/models/embedded"), help="folder of the embedded model")
    add("--work", type=Path, default=Path("build/embedded"), help="folder of the pictures and the checkpoint")
    add("--out", type=Path, default=Path("lora_service/models/embedded/adapters/lines"), help="folder of the adapter")
    add("--pictures", type=int, default=2500, help="number of different pictures")
    add("--steps", type=int, default=600)
    add("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pictures, metadata = load_pool("synthetic", arguments.pictures, arguments.work / "pictures")
    pipeline = StableDiffusionPipeline.from_pretrained(arguments.base, safety_checker=None, dtype=torch.float32)
    plan = Plan(arguments.steps, 2e-3, 30, decay_from=0.4, ema_decay=0.98, uses_muon=_is_matrix, save_every=50)
    captions = [caption for caption, _ in metadata]
    train(pipeline, np.asarray(pictures), captions, plan, arguments.work).half().save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
