"""Textual inversions of a request, which add words to its prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lora_service.errors import quote
from lora_service.generation.request import GenerateRequest
from lora_service.lora.patcher import PatchReport
from lora_service.lora.scale import Scale

EMBEDDING_SCALE = Scale(1.0, 1.0)


def report_embeddings(
    report: PatchReport, loras: int, request: GenerateRequest, log: Callable[[str], None]
) -> PatchReport:
    """Log the words of the embeddings that were applied behind ``loras`` LoRAs; return the report on the LoRAs alone.

    ``<1>``, ``<2>`` count LoRAs only: an embedding is called by its word.
    """
    prompts = f"{request.prompt}\n{request.negative_prompt}"
    for number, text in enumerate(report.subjects[loras:], start=1):
        word = text.split(" ")[0]
        if word in prompts:
            log(f"embedding {number}: {quote(word)}")
        else:
            log(f"warning: no prompt has the word of embedding {number}, {quote(word)}, so it has no effect")
    return replace(report, subjects=report.subjects[:loras], named_subjects=report.named_subjects[:loras])
