"""What a user asks to be drawn."""

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
"""Width and height in pixels."""
LORAS_AT_MOST = 8
"""LoRAs in one request."""


def _sampler(name: str) -> str:
    check_scheduler(name, 1)
    return name


class GenerateRequest(BaseModel):
    """The inputs of an inference, as given and validated; ``None`` means what suits the base."""

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
    scheduler: Annotated[str, BeforeValidator(_sampler)] = Field(
        "DPMSolverMultistep",
        description="The sampler that turns noise into the picture.",
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
        """A request from an entry's inputs.

        Raises:
            InputError: an input cannot be used; its name, its value and what would work are said.
        """
        try:
            request = GenerateRequest(**values)
        except ValidationError as error:
            raise first_error(error) from error
        request.loras()
        return request

    def loras(self) -> list[tuple[str, Scale]]:
        """The links with their scales.

        Raises:
            InputError: the numbers of links and scales differ, or a scale is none.
        """
        links = split(self.lora_urls)
        if len(links) > LORAS_AT_MOST:
            raise InputError("lora_urls", self.lora_urls, f"at most {LORAS_AT_MOST} links")
        scales = [parse_scale(text) for text in self.lora_scales.split("|")] if links else []
        if len(scales) == 1:
            scales *= len(links)
        if len(scales) != len(links):
            raise InputError(
                "lora_scales", self.lora_scales, f"one scale, or {len(links)} split by |, one for each link"
            )
        return list(zip(links, scales, strict=True))


def parse_scale(text: str) -> Scale:
    """``0.8``, or ``0.8/0.5`` for 0.8 in the UNet and 0.5 in the text encoder.

    Raises:
        InputError: it is no number, or two, from −2 to 2.
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
    """A prompt with its subjects named."""

    prompt: str
    notes: tuple[str, ...] = ()


_REFERENCE = re.compile(r"<([1-9]\d?)>")


def expand_references(prompt: str, subjects: list[str | None]) -> ExpandedPrompt:
    """``prompt`` with ``<1>``, ``<2>`` replaced by what calls the subject of the first, second LoRA.

    Without any LoRA they are left out, as the form's own default prompt names one.

    Raises:
        InputError: a number has no LoRA.
    """
    notes = []

    def name(match: re.Match[str]) -> str:
        number = int(match[1])
        if not subjects:
            notes.append(
                f"No LoRA was given, so {match[0]} was left out of the prompt; paste a LoRA's link in lora_urls."
            )
            return ""
        if number > len(subjects):
            raise InputError("prompt", prompt, f"one that names <1> to <{len(subjects)}>, the LoRAs that were given")
        if subjects[number - 1] is None:
            notes.append(f"LoRA {number} names no token or trigger word, so {match[0]} was left out of the prompt.")
        return subjects[number - 1] or ""

    named = _REFERENCE.sub(name, prompt)
    return ExpandedPrompt(re.sub(r"\s+", " ", named).strip() if notes else named, tuple(notes))
