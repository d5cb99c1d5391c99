"""A tiny random base model, complete, for tests of training and generation."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image

from lora_service.dataset.training_images import TrainingImage
from lora_service.models.components import Components
from lora_service.models.defaults import ModelDefaults
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.loading import assemble
from lora_service.models.registry import FAMILIES
from tests.small_models import small_models

DEFAULTS = ModelDefaults(
    title="small", architecture="small", version="small", resolution=32, num_inference_steps=2, token_norm=0.4
)


def small_base(prediction_type: str = "epsilon", family: str = "sd1") -> DiffusionBase:
    """Make a base of one of ``FAMILIES``, with a VAE of factor 4; the same every time."""
    return assemble("small", small_components(prediction_type, family), DEFAULTS, torch.device("cpu"), torch.float32)


def small_components(prediction_type: str = "epsilon", family: str = "sd1") -> Components:
    """Make the components of :func:`small_base`."""
    models = small_models(family)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8, 8, 8),
            norm_num_groups=4,
            latent_channels=4,
            sample_size=32,
        )
    scheduler = DDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=prediction_type,
        clip_sample=False,
        steps_offset=1,
    )
    return Components(
        family=next(each for each in FAMILIES if each.name == family),
        backbone=models.unet,
        vae=vae,
        text_encoders={name: model for name, model in models.components.items() if name != "unet"},
        tokenizers=models.tokenizers,
        scheduler_config=dict(scheduler.config),
        pipeline_config={"force_zeros_for_empty_prompt": family == "sdxl"},
    )


def pipeline_of(base: DiffusionBase, scheduler_class: type = DDPMScheduler, **options: object) -> DiffusionPipeline:
    """Make diffusers' own pipeline of the base's models."""
    scheduler = scheduler_class.from_config(base.scheduler_config, **options)  # type: ignore[attr-defined]
    components = {"vae": base.vae, "unet": base.unet, "scheduler": scheduler, **base.text.encoders}
    components |= {name.replace("text_encoder", "tokenizer"): tokenizer for name, tokenizer in base.tokenizers.items()}
    if base.family.name == "sdxl":
        pipeline = StableDiffusionXLPipeline(**components, add_watermarker=False)
    else:
        none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = StableDiffusionPipeline(**components, **none)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def picture(color: str = "red", size: tuple[int, int] = (32, 32), **more: object) -> TrainingImage:
    """Make a training picture of one colour with a black left half, so that its mirror image differs."""
    image = Image.new("RGB", size, color)
    image.paste("black", (0, 0, size[0] // 2, size[1]))
    values: dict[str, object] = {"captions": ("a photo of {}",), "mask": None, "crop": (0, 0, *size), "original": size}
    return TrainingImage(name=f"{color}.png", image=image, **values | more)  # type: ignore[arg-type]


def picture_zip(path: Path, colors: tuple[str, ...] = ("red", "green", "blue"), size: int = 64) -> Path:
    """Write a zip of one-coloured pictures with a white square on each."""
    with zipfile.ZipFile(path, "w") as archive:
        for color in colors:
            image = Image.new("RGB", (size, size), color)
            image.paste("white", (size // 4, size // 4, size // 2, size // 2))
            data = io.BytesIO()
            image.save(data, "PNG")
            archive.writestr(zipfile.ZipInfo(f"{color}.png"), data.getvalue())
    return path


def hashes(base: DiffusionBase) -> dict[str, int]:
    """Hash the bytes of each of the base's weights."""
    models = {**base.components, "vae": base.vae}
    return {
        f"{name}.{key}": hash(value.detach().numpy().tobytes())
        for name, model in models.items()
        for key, value in model.state_dict().items()
    }
