"""diffusers' pipelines around the models of a base."""

from __future__ import annotations

from typing import Any

import diffusers

from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.families.family import PipelineTask


def make_pipeline(base: DiffusionBase, task: PipelineTask, scheduler: Any) -> Any:
    """Make a pipeline of ``base`` with neither text encoders nor safety checker; this takes a millisecond.

    Args:
        base: the base model.
        task: what the pipeline is given. ``inpaint`` is for UNets of 4 and 9 input channels.
        scheduler: of :func:`lora_service.generation.scheduler_classes.make_scheduler`.

    Call it with :meth:`~lora_service.models.text_encoders.PromptEmbeds.as_kwargs` and ``output_type="latent"``: a
    pipeline that decodes latents itself casts the VAE's weights back and forth.
    """
    components = {"vae": base.vae, base.family.backbone: base.backbone, "scheduler": scheduler}
    pipeline = getattr(diffusers, base.family.pipelines[task])(
        **components, **base.family.pipeline_options(base.pipeline_config)
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
