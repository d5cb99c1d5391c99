"""``<lora:name:0.8>`` in prompts, as A1111 and Civitai write a LoRA with its scale."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lora_service.errors import InputError
from lora_service.generation.references import LORA_TAG
from lora_service.generation.request import GenerateRequest
from lora_service.lora.safetensors_header import shortened
from lora_service.lora.scale import Scale
from lora_service.lora.weights import LoraWeights

_MAX_SCALE = 2.0


@dataclass(frozen=True)
class TaggedPrompt:
    """A prompt without its tags.

    Attributes:
        prompt: the prompt; unchanged where it has no tag.
        scales: index of a LoRA of the request -> the scale that a tag gives it.
        notes: lines for the user.
    """

    prompt: str
    scales: Mapping[int, Scale] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def follow_lora_tags(
    request: GenerateRequest, loras: Sequence[tuple[LoraWeights, Scale]], log: Callable[[str], None]
) -> tuple[GenerateRequest, list[tuple[LoraWeights, Scale]]]:
    """Return the request with prompts without tags and the scales that they set, and its LoRAs with these scales.

    Raises:
        InputError: a tag has a scale that is none.
    """
    names = [weights.names for weights, _ in loras]
    prompt = take_lora_tags(request.prompt, names)
    negative = take_lora_tags(request.negative_prompt, names, "negative_prompt")
    for note in (*prompt.notes, *negative.notes):
        log(note)
    scales = request.lora_scales.split("|")
    scales *= len(loras) if len(scales) == 1 else 1
    scaled = list(loras)
    for index, scale in prompt.scales.items():
        weights, old = loras[index]
        scaled[index] = weights, replace(old, unet=scale.unet, text_encoder=scale.text_encoder)
        scales[index] = ",".join([_shown(scale), *(part for part in scales[index].split(",") if ":" in part)])
    changed = {"prompt": prompt.prompt, "negative_prompt": negative.prompt}
    changed |= {"lora_scales": "|".join(scales)} if prompt.scales else {}
    return request.model_copy(update=changed), scaled


def take_lora_tags(prompt: str, names: Sequence[Sequence[str]], field: str = "prompt") -> TaggedPrompt:
    """Take the tags out of ``prompt``; those that name a LoRA of the request set its scale.

    A tag has one scale, or A1111's two, that of the text encoder first; without any the request's own stays. In the
    negative prompt, tags set nothing, as in A1111.

    Args:
        prompt: the prompt.
        names: the names that each LoRA of the request is known by: file name, title, trigger.
        field: the input that holds it.

    Raises:
        InputError: a scale is no number from −2 to 2.
    """
    by_name = {_key(name): index for index, group in reversed(list(enumerate(names))) for name in group if name}
    scales: dict[int, Scale] = {}
    notes: list[str] = []

    def take(match: re.Match[str]) -> str:
        tag = match[0].strip()
        index = by_name.get(_key(match["name"])) if match["kind"] != "hypernet" else None
        if match["kind"] == "hypernet":
            notes.append(f"warning: {shortened(tag)} was left out of the {_words(field)}: hypernetworks are not read")
        elif index is None:
            notes.append(
                f"warning: {shortened(tag)} was left out of the {_words(field)}, as no LoRA of the request has that "
                "name; give its link in lora_urls, and its scale in lora_scales"
            )
        elif field != "prompt":
            notes.append(f"warning: {shortened(tag)} was left out of the {_words(field)}, where it has no effect")
        elif scale := _scale(tag, match["scales"], field):
            scales[index] = scale
            notes.append(f"LoRA {index + 1} has the scale {_shown(scale)}, as {shortened(tag)} in the prompt says")
        return ""

    stripped, count = LORA_TAG.subn(take, prompt)
    return TaggedPrompt(stripped.strip() if count else prompt, scales, tuple(dict.fromkeys(notes)))


def _scale(tag: str, text: str, field: str) -> Scale | None:
    """Return the scale of ``:0.8``, of ``:0.5:0.8`` or of ``:te=0.5:unet=0.8``; None where a tag has none."""
    parts = [part.strip() for part in text.split(":")[1:] if part.strip()]
    named = dict(part.split("=", 1) for part in parts if "=" in part)
    values = [part for part in parts if "=" not in part]
    first = named.get("te") or (values[0] if values else named.get("unet"))
    if first is None:
        return None
    second = named.get("unet") or (values[1] if len(values) > 1 else first)
    try:
        unet, text_encoder = float(second), float(first)
    except ValueError:
        unet = text_encoder = math.nan
    if not (abs(unet) <= _MAX_SCALE and abs(text_encoder) <= _MAX_SCALE):
        raise InputError(field, shortened(tag), "one whose tags have a scale from -2 to 2, like <lora:name:0.8>")
    return Scale(unet=unet, text_encoder=text_encoder)


def _shown(scale: Scale) -> str:
    """Return a scale as ``lora_scales`` takes it."""
    same = scale.unet == scale.text_encoder
    return f"{scale.unet:g}" if same else f"{scale.unet:g}/{scale.text_encoder:g}"


def _key(name: str) -> str:
    """Return a name so that small differences of writing do not count."""
    return re.sub(r"[\s_-]+", "_", name.strip().casefold().removesuffix(".safetensors"))


def _words(field: str) -> str:
    return field.replace("_", " ")
