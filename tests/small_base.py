"""A tiny random base model, whole: what training and drawing need, in a moment."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline
from PIL import Image
from small_models import small_models

from lora_service.models.bundle import BaseModel
from lora_service.models.recipe import BaseRecipe
from lora_service.pictures import TrainingPicture

RECIPE = BaseRecipe(
    title="small", architecture="small", version="small", resolution=32, num_inference_steps=2, token_norm=0.4
)


def small_base(prediction_type: str = "epsilon") -> BaseModel:
    """A base of the SD 1.x class with a VAE of factor 4; the same every time."""
    models = small_models("sd1")
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
    parts = [models.unet, vae.eval(), models.components["text_encoder"]]
    for part in parts:
        part.requires_grad_(False)
    return BaseModel(
        name="small",
        unet=parts[0],
        vae=parts[1],
        text_encoder=parts[2],
        tokenizer=models.tokenizers["text_encoder"],
        scheduler_config=dict(scheduler.config),
        recipe=RECIPE,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )


def pipeline_of(base: BaseModel, scheduler: type = DDPMScheduler, **options: object) -> StableDiffusionPipeline:
    """Plain diffusers around the base's own parts."""
    return StableDiffusionPipeline(
        vae=base.vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        unet=base.unet,
        scheduler=scheduler.from_config(base.scheduler_config, **options),  # type: ignore[attr-defined]
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def picture(color: str = "red", size: tuple[int, int] = (32, 32), **more: object) -> TrainingPicture:
    """A training picture of one colour with a dark left half, so that its mirror differs."""
    image = Image.new("RGB", size, color)
    image.paste("black", (0, 0, size[0] // 2, size[1]))
    values: dict[str, object] = {"captions": ("a photo of {}",), "mask": None, "repeats": 1} | more
    return TrainingPicture(name=f"{color}.png", image=image, crop=(0, 0, *size), original=size, **values)  # type: ignore[arg-type]


def picture_zip(path: Path, colors: tuple[str, ...] = ("red", "green", "blue"), size: int = 64) -> Path:
    """A zip of plain pictures with a shape on each."""
    with zipfile.ZipFile(path, "w") as archive:
        for color in colors:
            image = Image.new("RGB", (size, size), color)
            image.paste("white", (size // 4, size // 4, size // 2, size // 2))
            data = io.BytesIO()
            image.save(data, "PNG")
            archive.writestr(zipfile.ZipInfo(f"{color}.png"), data.getvalue())
    return path


def hashes(base: BaseModel) -> dict[str, int]:
    """A number for the bytes of each of the base's weights."""
    parts = {**base.components, "vae": base.vae}
    return {
        f"{name}.{key}": hash(value.detach().numpy().tobytes())
        for name, part in parts.items()
        for key, value in part.state_dict().items()
    }
