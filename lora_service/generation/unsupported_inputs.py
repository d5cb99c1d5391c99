"""Checks a request's inputs against the family of the base: what it has no counterpart of is refused, not ignored."""

from __future__ import annotations

from collections.abc import Callable

from lora_service.errors import InputError
from lora_service.generation.request import GenerateRequest
from lora_service.models.families.family import Family


def fit_to_family(request: GenerateRequest, family: Family, log: Callable[[str], None]) -> GenerateRequest:
    """Return ``request`` with a scheduler that ``family`` has; its default stands for the family's own.

    Args:
        log: called where the scheduler is another than the inputs'.

    Raises:
        InputError: an input asks for what the family cannot do (``not_for_this_base``).
    """
    if family.objective == "diffusion":
        return request
    neutral = {"schedule": "default", "guidance_rescale": 0.0, "cache_interval": 1}
    for name, value in neutral.items():
        if getattr(request, name) not in (None, value):
            raise _refused(name, getattr(request, name), f"{value} for {family.title}, which draws without it")
    if request.negative_prompt and not family.reads_negative_prompt:
        raise _refused("negative_prompt", request.negative_prompt, f"empty for {family.title}, which reads none")
    if request.scheduler in family.schedulers:
        return request
    own = family.schedulers[0]
    if request.scheduler != GenerateRequest.model_fields["scheduler"].default:
        raise _refused("scheduler", request.scheduler, f"{' or '.join(family.schedulers)} for {family.title}")
    log(f"scheduler {own}, {family.title}'s own, in place of {request.scheduler}")
    return request.model_copy(update={"scheduler": own})


def _refused(name: str, value: object, expected: str) -> InputError:
    return InputError(name, value, expected, code="not_for_this_base")
