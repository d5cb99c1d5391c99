"""The inputs of an image generation, validated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from lora_service.downloads.parsed_url import redact, redact_all
from lora_service.downloads.resolve import MAX_LINK_LENGTH, is_data_uri, split
from lora_service.errors import InputError, blame_input
from lora_service.generation.references import check_own_references
from lora_service.generation.schedulers import SCHEDULERS, check_scheduler
from lora_service.lora.scale import Scale, parse_scale
from lora_service.models.control_registry import AdapterType
from lora_service.models.defaults import ModelDefaults
from lora_service.validation import Int, validate, without_surrogates

LARGEST_SIDE = 8192
"""The most pixels of width and height that are asked about at all; memory and ``MAX_PIXEL_STEPS`` allow fewer."""
MAX_LORAS = 8
"""The most LoRAs of one request."""
MAX_EMBEDDINGS = 16
"""The most textual inversions of one request."""
PICTURE_FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
"""Suffix of a picture file -> ``output_format``."""


def _checked_scheduler(name: str) -> str:
    check_scheduler(name, 1)
    return name


def _picture_format(name: Any) -> Any:
    """Return the format that a suffix names too, ``jpg``; anything else as it is."""
    return PICTURE_FORMATS.get(f".{name}".lower(), name)


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
    aspect_ratio: Literal["auto", "1:1", "5:4", "4:5", "4:3", "3:4", "3:2", "2:3", "16:9", "9:16", "21:9", "9:21"] = (
        Field("auto", description="Shape of the picture, of width, height or the base's size. auto: as image.")
    )
    num_outputs: Int = Field(1, ge=1, le=8, description="How many pictures.")
    num_inference_steps: Int | None = Field(
        None, ge=1, le=500, description="Empty: the base model's own (SD 1.5: 30). Denoising steps of the scheduler."
    )
    guidance_scale: float | None = Field(
        None, ge=0, le=50, description="Empty: the base model's own (SD 1.5: 7.5). How strictly to follow the prompt."
    )
    clip_skip: Int | None = Field(
        None,
        ge=1,
        le=32,
        description="Empty: as the LoRA was trained. Layer of the text encoder that is read, from the end.",
    )
    scheduler: Annotated[str, BeforeValidator(_checked_scheduler)] = Field(
        "DPMSolverMultistep",
        description="The scheduler of the denoising steps.",
        json_schema_extra={"enum": [*SCHEDULERS]},
    )
    schedule: Literal["default", "karras", "exponential", "beta"] = Field(
        "default", description="Spacing of the noise levels. karras often shows more detail at few steps."
    )
    guidance_rescale: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Empty: 0, or 0.7 for bases with zero terminal SNR. Against garish colours at high guidance.",
    )
    cache_interval: Int = Field(
        1, ge=1, le=10, description="For drafts: 2 to 5 computes most of the UNet in every so many steps only. 1: off."
    )
    lora_urls: str = Field(
        "", description="Links to LoRAs, split by |. Share links of Google Drive, Hugging Face, Civitai … work."
    )
    lora_scales: str = Field(
        "0.8",
        max_length=4000,
        description="One scale for all, or one each, split by |. 0.8/0.5: UNet 0.8, text encoder 0.5.",
    )
    lora_mode: Literal["together", "each"] = Field(
        "together",
        description="Several LoRAs: all in every picture, or num_outputs pictures of each, in which it is <1>.",
    )
    prompt_strength: float = Field(
        0.8, ge=0, le=1, description="With image: how far the result may go from it. 1 ignores it."
    )
    mask_feather: Int | None = Field(
        None,
        ge=0,
        le=512,
        description="Empty: one latent (SD: 8). With mask: width in pixels of the soft edge, within the white.",
    )
    keep_unmasked: bool = Field(
        True, description="With mask: its black parts are the image's own pixels. Off: the whole picture is decoded."
    )
    seed: Int | None = Field(
        None, ge=0, le=2**32 - 1, description="Empty: random, and reported. The same seed gives the same pictures."
    )
    adapter_type: AdapterType = Field(
        "sketch",
        description="With adapter_condition_image: what of it is followed. Lines are traced from any picture.",
    )
    adapter_scale: float = Field(
        1.0, ge=0, le=2, description="With adapter_condition_image: how strictly it is followed. 0 ignores it."
    )
    embedding_urls: str = Field(
        "", description="Links to textual inversions, split by |; the file's name is the word for the prompt."
    )
    disable_safety_checker: bool = Field(False, description="Give out pictures unchecked, where this server allows it.")
    output_format: Annotated[Literal["png", "jpeg", "webp"], BeforeValidator(_picture_format)] = Field(
        "png", description="Format of the files."
    )
    output_quality: Int = Field(90, ge=1, le=100, description="Quality of jpeg and webp.")
    preview_every: Int = Field(
        0, ge=0, le=500, description="Show a small preview of the first picture every so many steps. 0: none."
    )

    GROUPS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Picture": (
            "prompt", "negative_prompt", "lora_urls", "lora_scales", "lora_mode", "width", "height",
            "aspect_ratio", "num_outputs", "seed", "prompt_strength", "mask_feather", "keep_unmasked", "embedding_urls",
        ),
        "Control": ("adapter_type", "adapter_scale"),
        "Sampling": (
            "num_inference_steps", "guidance_scale", "guidance_rescale", "scheduler", "schedule", "clip_skip",
            "cache_interval",
        ),
        "Files": ("output_format", "output_quality", "preview_every", "disable_safety_checker"),
    }  # fmt: skip
    """The fields by group, in the order of ``lora-service generate --help``."""

    _whole_characters = field_validator("*", mode="before")(without_surrogates)

    @staticmethod
    def of(values: Mapping[str, Any], more_loras: int = 0) -> GenerateRequest:
        """Validate an entry's inputs.

        Args:
            values: the inputs by name.
            more_loras: the number of LoRAs that come before those of ``lora_urls``.

        Raises:
            InputError: an input cannot be used.
        """
        try:
            request = validate(GenerateRequest, values)
        except InputError as error:
            if error.field not in ("lora_urls", "embedding_urls"):
                raise
            shown = redact_all(str(error.value).split("|"))  # links may carry tokens
            raise InputError(error.field, shown, error.expected, code=error.code) from None
        request.check_lora_mode(len(request.scales(more_loras)))
        check_scheduler(request.scheduler, 1, request.schedule)
        request.links("embedding_urls")
        return request

    def steps(self, defaults: ModelDefaults) -> int:
        """Return the inference steps, on a base with ``defaults``."""
        return self.num_inference_steps or defaults.num_inference_steps

    def guidance(self, defaults: ModelDefaults) -> float:
        """Return the guidance scale, on a base with ``defaults``."""
        return defaults.guidance_scale if self.guidance_scale is None else self.guidance_scale

    def links(self, field: Literal["lora_urls", "embedding_urls"] = "lora_urls") -> tuple[str, ...]:
        """Return the links of ``lora_urls`` or ``embedding_urls``.

        Raises:
            InputError: there are too many, or one is longer than any link.
            LinkError: they begin as a JSON list and are none.
        """
        most = MAX_LORAS if field == "lora_urls" else MAX_EMBEDDINGS
        with blame_input(field):
            links = split(getattr(self, field))
        if len(links) > most:
            raise InputError(field, redact_all(links), f"at most {most} links")
        too_long = [link for link in links if len(link) > MAX_LINK_LENGTH and not is_data_uri(link)]
        if too_long:
            raise InputError(field, redact(too_long[0]), f"links of at most {MAX_LINK_LENGTH} characters")
        return links

    def scales(self, more_loras: int = 0) -> list[Scale]:
        """Return the scale of each LoRA; a single one counts for all.

        Args:
            more_loras: the number of LoRAs that come before those of ``lora_urls``.

        Raises:
            InputError: there are too many LoRAs, the numbers of LoRAs and scales differ, or a scale is invalid.
        """
        count = more_loras + len(self.links())
        if count > MAX_LORAS:
            raise InputError("lora_urls", redact_all(self.links()), f"at most {MAX_LORAS - more_loras} links")
        scales = [parse_scale(text) for text in self.lora_scales.split("|")] if count else []
        if len(scales) == 1:
            scales *= count
        if len(scales) != count:
            raise InputError("lora_scales", self.lora_scales, f"one scale, or {count} split by |, one for each LoRA")
        return scales

    def check_lora_mode(self, loras: int) -> None:
        """Check that ``loras`` LoRAs can have pictures for themselves, if they should.

        Raises:
            InputError: there is none, or a prompt speaks of several.
        """
        if self.lora_mode == "together":
            return
        if not loras:
            raise InputError(
                "lora_mode", "each", "together where there is no LoRA; lora_urls takes some", code="no_lora"
            )
        for name in ("prompt", "negative_prompt"):
            check_own_references(getattr(self, name), name)

    def loras(self) -> list[tuple[str, Scale]]:
        """Return the links with their scales.

        Raises:
            InputError, LinkError: as of :meth:`links` and :meth:`scales`.
        """
        return list(zip(self.links(), self.scales(), strict=True))
