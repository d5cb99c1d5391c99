"""Checks a request's inputs against the base and its family: what has no counterpart there is refused, not ignored."""

from __future__ import annotations

from collections.abc import Callable

from lora_service.errors import InputError
from lora_service.generation.initial_image import InputImages
from lora_service.generation.request import GenerateRequest
from lora_service.models.diffusion_base import DiffusionBase

_NEUTRAL = {"schedule": "default", "guidance_rescale": 0.0, "cache_interval": 1}
"""Inputs that flow matching has no counterpart of, and their values that ask for nothing."""


def fit_to_base(
    request: GenerateRequest, base: DiffusionBase, images: InputImages, log: Callable[[str], None]
) -> GenerateRequest:
    """Return ``request`` with a scheduler that the family of ``base`` has; its default stands for the family's own.

    Args:
        images: the pictures of the request.
        log: called where the scheduler is another than the inputs', and where the negative prompt has no effect.

    Raises:
        InputError: an input asks for what the base cannot do (``not_for_this_base``).
    """
    family, title = base.family, base.defaults.title
    scale = base.defaults.guidance_scale if request.guidance_scale is None else request.guidance_scale
    if not family.takes_guidance(base.backbone, base.pipeline_config):
        if (request.guidance_scale or 0) > 1:
            raise _refused("guidance_scale", scale, f"left out or 1 for {title}, which was distilled to draw without")
        if request.negative_prompt:
            raise _refused("negative_prompt", request.negative_prompt, f"empty for {title}, which has no guidance")
    if request.negative_prompt and not family.reads_negative_prompt:
        raise _refused("negative_prompt", request.negative_prompt, f"empty for {family.title}, which reads none")
    if request.negative_prompt and not family.guides(scale):
        log(f"warning: negative_prompt has no effect, as guidance_scale is {scale:g}, which is none on {title}")
    if family.objective == "diffusion":
        return request
    for name, value in _NEUTRAL.items():
        if getattr(request, name) not in (None, value):
            raise _refused(name, getattr(request, name), f"{value} for {family.title}, which draws without it")
    if images.adapter_condition_image is not None and request.adapter_scale:
        expected = f"left out for {family.title}, which there are no ControlNets or T2I-Adapters for here"
        raise _refused("adapter_condition_image", "a picture", expected)
    if request.scheduler in family.schedulers:
        return request
    own = family.schedulers[0]
    if request.scheduler != GenerateRequest.model_fields["scheduler"].default:
        raise _refused("scheduler", request.scheduler, f"{' or '.join(family.schedulers)} for {family.title}")
    log(f"scheduler {own}, {family.title}'s own, in place of {request.scheduler}")
    return request.model_copy(update={"scheduler": own})


def _refused(name: str, value: object, expected: str) -> InputError:
    return InputError(name, value, expected, code="not_for_this_base")
