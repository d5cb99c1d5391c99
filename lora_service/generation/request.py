"""The inputs of an image generation, validated, and the prompt with its references to LoRAs expanded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from lora_service.downloads.resolve import split
from lora_service.errors import InputError
from lora_service.generation.schedulers import SCHEDULERS, check_scheduler
from lora_service.lora.scale import Scale
from lora_service.validation import Int, first_error

LARGEST_SIDE = 2048
"""The most pixels of width and height."""
MAX_LORAS = 8
"""The most LoRAs of one request."""


def _checked_scheduler(name: str) -> str:
    check_scheduler(name, 1)
    return name


class GenerateRequest(BaseModel):
    """The inputs of an inference; ``None`` stands for the base model's default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str = Field(
        "a photo of <1>",
        max_length=5000,
        description="What to draw. <1>, <2>: what the first, second LoRA learned; trigger words work too.",
    )
    negative_prompt: str = Field("", max_length=5000, description="What not to draw.")
    width: Int | None = Field(
        None, ge=16, le=LARGEST_SIDE, description="Empty: the base model's own (SD 1.5: 512). Width in pixels."
    )
    height: Int | None = Field(
        None, ge=16, le=LARGEST_SIDE, description="Empty: the base model's own (SD 1.5: 512). Height in pixels."
    )
    num_outputs: Int = Field(1, ge=1, le=8, description="How many pictures.")
    num_inference_steps: Int | None = Field(
        None, ge=1, le=500, description="Empty: the base model's own (SD 1.5: 30). Denoising steps of the scheduler."
    )
    guidance_scale: float | None = Field(
        None, ge=0, le=50, description="Empty: the base model's own (SD 1.5: 7.5). How strictly to follow the prompt."
    )
    scheduler: Annotated[str, BeforeValidator(_checked_scheduler)] = Field(
        "DPMSolverMultistep",
        description="The scheduler of the denoising steps.",
        json_schema_extra={"enum": [*SCHEDULERS]},
    )
    lora_urls: str = Field(
        "",
        max_length=20000,
        description="Links to LoRAs, split by |. Share links of Google Drive, Hugging Face, Civitai … work.",
    )
    lora_scales: str = Field(
        "0.8",
        max_length=500,
        description="One scale for all, or one each, split by |. 0.8/0.5: UNet 0.8, text encoder 0.5.",
    )
    prompt_strength: float = Field(
        0.8, ge=0, le=1, description="With image: how far the result may go from it. 1 ignores it."
    )
    seed: Int | None = Field(
        None, ge=0, le=2**32 - 1, description="Empty: random, and reported. The same seed gives the same pictures."
    )
    output_format: Literal["png", "jpeg", "webp"] = Field("png", description="Format of the files.")
    output_quality: Int = Field(90, ge=1, le=100, description="Quality of jpeg and webp.")

    GROUPS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Picture": (
            "prompt", "negative_prompt", "lora_urls", "lora_scales", "width", "height", "num_outputs", "seed",
            "prompt_strength",
        ),
        "Sampling": ("num_inference_steps", "guidance_scale", "scheduler"),
        "Files": ("output_format", "output_quality"),
    }  # fmt: skip
    """The fields by group, in the order of ``lora-service generate --help``."""

    @staticmethod
    def of(values: dict[str, Any]) -> GenerateRequest:
        """Validate an entry's inputs.

        Raises:
            InputError: an input cannot be used.
        """
        try:
            request = GenerateRequest(**values)
        except ValidationError as error:
            raise first_error(error) from error
        request.loras()
        return request

    def loras(self) -> list[tuple[str, Scale]]:
        """Return the links with their scales; a single scale counts for all links.

        Raises:
            InputError: there are too many links, the numbers of links and scales differ, or a scale is invalid.
        """
        links = split(self.lora_urls)
        if len(links) > MAX_LORAS:
            raise InputError("lora_urls", self.lora_urls, f"at most {MAX_LORAS} links")
        scales = [parse_scale(text) for text in self.lora_scales.split("|")] if links else []
        if len(scales) == 1:
            scales *= len(links)
        if len(scales) != len(links):
            raise InputError(
                "lora_scales", self.lora_scales, f"one scale, or {len(links)} split by |, one for each link"
            )
        return list(zip(links, scales, strict=True))


def parse_scale(text: str) -> Scale:
    """Parse ``0.8``, or ``0.8/0.5`` for 0.8 in the UNet and 0.5 in the text encoder.

    Raises:
        InputError: it is neither one nor two numbers from −2 to 2.
    """
    try:
        numbers = [float(part) for part in text.split("/")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2) or not all(-2 <= n <= 2 for n in numbers):
        raise InputError(
            "lora_scales", text, "a number from -2 to 2 like 0.8, or two for UNet and text encoder like 0.8/0.5"
        )
    return Scale(unet=numbers[0], text_encoder=numbers[-1])


@dataclass(frozen=True)
class ExpandedPrompt:
    """A prompt without references, and notes for the user on references that were left out."""

    prompt: str
    notes: tuple[str, ...] = ()


_REFERENCE = re.compile(r"<([1-9]\d?)>")


def expand_references(prompt: str, subjects: list[str | None]) -> ExpandedPrompt:
    """Replace ``<1>``, ``<2>`` in ``prompt`` by the tokens or trigger word of the first, second LoRA.

    Without any LoRA the references are left out, as the default prompt has one.

    Args:
        prompt: the prompt with references.
        subjects: tokens or trigger word of each LoRA; None for a LoRA that has neither.

    Raises:
        InputError: a number is larger than the number of LoRAs.
    """
    notes = []

    def expand(match: re.Match[str]) -> str:
        number = int(match[1])
        if not subjects:
            notes.append(
                f"No LoRA was given, so {match[0]} was left out of the prompt; paste a LoRA's link in lora_urls."
            )
            return ""
        if number > len(subjects):
            expected = f"one that names <1> to <{len(subjects)}>, the LoRAs of the request"
            raise InputError("prompt", prompt, expected, code="unknown_reference")
        subject = subjects[number - 1]
        if subject is None:
            notes.append(f"LoRA {number} has no token or trigger word, so {match[0]} was left out of the prompt.")
        return subject or ""

    expanded = _REFERENCE.sub(expand, prompt)
    return ExpandedPrompt(re.sub(r"\s+", " ", expanded).strip() if notes else expanded, tuple(notes))
