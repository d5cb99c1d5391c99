"""The references to LoRAs in prompts, ``<1>`` and ``<1:name>``; imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lora_service.errors import InputError
from lora_service.lora.safetensors_header import shortened


@dataclass(frozen=True)
class ExpandedPrompt:
    """A prompt without references, and notes for the user on references that were left out."""

    prompt: str
    notes: tuple[str, ...] = ()


LORA_TAG = re.compile(r"\s*<(?P<kind>lora|lyco|hypernet):(?P<name>[^<>:]{1,200})(?P<scales>(?::[^<>:]{0,30}){0,6})>")
"""``<lora:name:0.8>`` as A1111 and Civitai write it."""
_MAX_EXPANDED_LENGTH = 20_000
_REFERENCE = re.compile(r"<([1-9]\d?)(?::([^<>:|]{1,60}))?>")


def expand_references(
    prompt: str,
    subjects: list[str | None],
    field: str = "prompt",
    named_subjects: Sequence[Mapping[str, str]] = (),
    own: int | None = None,
) -> ExpandedPrompt:
    """Replace ``<1>``, ``<2>`` in ``prompt`` by the tokens or trigger word of the first, second LoRA.

    Of a LoRA of several subjects that is the first one's; ``<1:2>`` is the second one's, and ``<1:vok>`` that of the
    one whose trigger is ``vok`` or begins with that word. Without any LoRA the references are left out, as the default
    prompt has one.

    Args:
        prompt: the prompt with references.
        subjects: tokens or trigger word of each LoRA; None for a LoRA that has neither.
        field: the input that holds the prompt.
        named_subjects: for each LoRA, the text of each subject by its names, in small letters.
        own: the number in the request of the only LoRA, where each has images for itself.

    Raises:
        InputError: there is no such LoRA or subject (``unknown_reference``), or the prompt becomes longer than any
            text encoder reads (``prompt_too_long``).
    """
    notes = []
    shown = field.replace("_", " ")
    length = len(prompt)

    def expand(match: re.Match[str]) -> str:
        nonlocal length
        number = int(match[1])
        if not subjects:
            notes.append(
                f"There is no LoRA, so {match[0]} was left out of the {shown}; lora_urls, or --lora, takes one."
            )
            return ""
        if own is not None and number > 1:
            raise _not_own(prompt, field)
        if number > len(subjects):
            last = len(subjects)
            references = f"<1> to <{last}>, the LoRAs" if last > 1 else "<1>, the only LoRA"
            expected = f"one that names no other than {references} of the request"
            raise InputError(field, prompt, expected, code="unknown_reference")
        subject = subjects[number - 1]
        if match[2] is not None:
            by_name = named_subjects[number - 1] if named_subjects else {"1": subject or ""}
            named = _named_subject(match[2], number, by_name, (field, prompt), own)
            subject = named if subject is not None else None
        if not subject:
            notes.append(
                f"LoRA {own or number} has no token or trigger word, so {match[0]} was left out of the {shown}."
            )
        length += len(subject or "")
        if length > _MAX_EXPANDED_LENGTH:
            expected = f"shorter: with the tokens of its LoRAs it has more than {_MAX_EXPANDED_LENGTH} characters"
            raise InputError(field, shortened(prompt), expected, code="prompt_too_long")
        return subject or ""

    expanded = _REFERENCE.sub(expand, prompt)
    return ExpandedPrompt(re.sub(r"\s+", " ", expanded).strip() if notes else expanded, tuple(dict.fromkeys(notes)))


def check_own_references(prompt: str, field: str) -> None:
    """Check a prompt of images that each have one LoRA: ``<1>`` is that one, and there is no other.

    Raises:
        InputError: it names another (``unknown_reference``), or has a tag that sets a LoRA's scale (``lora_tag``).
    """
    if any(match[1] != "1" for match in _REFERENCE.finditer(prompt)):
        raise _not_own(prompt, field)
    for tag in LORA_TAG.finditer(prompt):
        if tag["kind"] != "hypernet":
            expected = f"without {shortened(tag[0].strip())}: where lora_mode is each, scales are given in lora_scales"
            raise InputError(field, prompt, expected, code="lora_tag")


def _not_own(prompt: str, field: str) -> InputError:
    expected = "one that names no other than <1>, the LoRA of each picture, as lora_mode is each"
    return InputError(field, prompt, expected, code="unknown_reference")


def _named_subject(
    name: str, number: int, by_name: Mapping[str, str], prompt_input: tuple[str, str], own: int | None
) -> str:
    """Return the text of the subject ``name`` of LoRA ``number``, in the request perhaps the ``own``-th.

    Raises:
        InputError: it has none of that name, as the prompt's input says (its name and value).
    """
    subject = by_name.get(" ".join(name.lower().split()))
    if subject is None:
        references = ", ".join(f"<{number}:{each}>" for each in by_name)
        expected = f"one that names the subjects of LoRA {own or number} as {shortened(references, 200)}"
        raise InputError(*prompt_input, expected, code="unknown_reference")
    return subject
