"""diffusers' pipelines around the models of a base."""

from __future__ import annotations

from typing import Any, Literal

import diffusers

from lora_service.models.diffusion_base import DiffusionBase

PipelineTask = Literal["text2img", "img2img", "inpaint"]

_PIPELINES: dict[tuple[PipelineTask, bool], str] = {
    ("text2img", False): "StableDiffusionPipeline",
    ("text2img", True): "StableDiffusionXLPipeline",
    ("img2img", False): "StableDiffusionImg2ImgPipeline",
    ("img2img", True): "StableDiffusionXLImg2ImgPipeline",
    ("inpaint", False): "StableDiffusionInpaintPipeline",
    ("inpaint", True): "StableDiffusionXLInpaintPipeline",
}
"""Class names, as importing a class takes a second; True: of XL."""


def make_pipeline(base: DiffusionBase, task: PipelineTask, scheduler: Any, unet: Any = None) -> Any:
    """Make a pipeline of ``base`` with neither text encoders nor safety checker; this takes a millisecond.

    Args:
        base: the base model.
        task: what the pipeline is given. ``inpaint`` is for UNets of 4 and 9 input channels.
        scheduler: of :func:`lora_service.generation.scheduler_classes.make_scheduler`.
        unet: what the pipeline calls in place of the base's UNet, with the attributes of one.

    Call it with :meth:`~lora_service.models.text_encoders.PromptEmbeds.as_kwargs` and ``output_type="latent"``: a
    pipeline that decodes latents itself casts the VAE's weights back and forth.
    """
    components: dict[str, Any] = {"vae": base.vae, "unet": base.unet, "scheduler": scheduler}
    components |= {"text_encoder": None, "tokenizer": None}
    if base.is_xl:
        components |= {"text_encoder_2": None, "tokenizer_2": None, "add_watermarker": False}
    else:
        components |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline = getattr(diffusers, _PIPELINES[task, base.is_xl])(**components)
    if unet is not None:
        # After the pipeline's making, which takes diffusers' own classes only.
        pipeline.unet = unet
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
