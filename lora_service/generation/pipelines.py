"""diffusers' pipelines around a base's own parts: text becomes conditioning before them, latents pictures after."""

from __future__ import annotations

from typing import Any, Literal

from lora_service.models.diffusion_base import DiffusionBase

PipelineTask = Literal["text2img", "img2img"]

_PIPELINES: dict[tuple[PipelineTask, bool], str] = {
    ("text2img", False): "StableDiffusionPipeline",
    ("text2img", True): "StableDiffusionXLPipeline",
    ("img2img", False): "StableDiffusionImg2ImgPipeline",
    ("img2img", True): "StableDiffusionXLImg2ImgPipeline",
}
"""By task and whether the base is an XL: the classes' names, as importing one takes a second."""


def pipeline_for(base: DiffusionBase, task: PipelineTask, scheduler: Any) -> Any:
    """A pipeline around ``base`` as it is now, whose text encoders stay outside; making one costs a millisecond.

    It is called with :meth:`~lora_service.models.text_encoders.PromptEmbeds.as_arguments`, and gives
    latents when asked with
    ``output_type="latent"``: its own handling of the VAE casts the VAE's weights back and forth.
    """
    import diffusers

    parts: dict[str, Any] = {"vae": base.vae, "unet": base.unet, "scheduler": scheduler}
    parts |= dict.fromkeys(["text_encoder", "tokenizer"])
    if base.is_xl:
        parts |= {"text_encoder_2": None, "tokenizer_2": None, "add_watermarker": False}
    else:
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline = getattr(diffusers, _PIPELINES[task, base.is_xl])(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
