"""The summary of a LoRA: lines for a terminal, and the JSON object of ``lora-service inspect``."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lora_service.lora.base_detection import NAMED_BASES, detect_lora_base
from lora_service.lora.header_facts import THUMBNAIL_KEY, TOKENS_KEY
from lora_service.lora.safetensors_header import shortened
from lora_service.lora.weights import BIAS, COMPONENTS, LoraWeights

_BAR_WIDTH = 40
_THUMBNAIL = re.compile(r"data:image/(\w{1,8});base64,")
# Long base64 strings, which have lines of their own.
_SHOWN_ELSEWHERE = (TOKENS_KEY, THUMBNAIL_KEY)


@dataclass(frozen=True)
class Summary:
    """The contents of a LoRA; the attributes are the keys of ``inspect --json``.

    Attributes:
        layout: name of its file's format.
        base: the base it was made for, by shapes, else by the header; None if neither identifies it.
        rank: the most common one; ``ranks`` says how often each occurs.
        modules: component -> number of changed modules.
        kinds: algorithm (LoRA, LoHa, LoKr, DoRA over …) -> number of changed modules.
        change: block -> Frobenius norm of its change at scale 1; None where it depends on the base's weights.
        thumbnail: "jpeg, 12 kB"; None without one.
        warnings: what of the file was left out or had to be assumed.
    """

    layout: str
    base: str | None
    rank: int
    alpha: float
    ranks: Mapping[int, int]
    modules: Mapping[str, int]
    kinds: Mapping[str, int]
    change: Mapping[str, float | None]
    tokens: tuple[str, ...]
    trigger: str | None
    thumbnail: str | None
    metadata: Mapping[str, str]
    warnings: tuple[str, ...] = ()


def summarize(weights: LoraWeights) -> Summary:
    """Return the summary of a LoRA."""
    expected = ("transformer",) if weights.layers.get("transformer") else ("unet", "text_encoder")
    names = [name for name in COMPONENTS if name in expected or weights.layers.get(name)]
    modules = {name: len({path.removesuffix(BIAS) for path in weights.layers.get(name, {})}) for name in names}
    return Summary(
        layout=weights.format,
        base=_base(weights),
        rank=weights.rank,
        alpha=weights.alpha,
        ranks=dict(sorted(Counter(layer.rank for _, _, layer in weights).items())),
        modules=modules,
        kinds=dict(Counter(layer.kind for _, _, layer in weights)),
        change=_change_by_block(weights),
        tokens=weights.tokens,
        trigger=weights.trigger,
        thumbnail=_thumbnail(weights.metadata),
        metadata=dict(sorted(weights.metadata.items())),
        warnings=weights.warnings,
    )


def _base(weights: LoraWeights) -> str | None:
    """Return the base's name, by shapes; of one with shapes of its own the name in the header, if it has one."""
    base = detect_lora_base(weights)
    return base if base in NAMED_BASES else weights.metadata.get("ss_sd_model_name") or base


def as_json(summary: Summary) -> str:
    """Return one JSON object."""
    fields: dict[str, Any] = asdict(summary)
    return json.dumps(fields, ensure_ascii=False, indent=2)


def as_text(summary: Summary) -> str:
    """Return lines for a terminal, with a bar for the size of the change of each block."""
    warnings = (f"warning    {shortened(warning, 400)}" for warning in summary.warnings)
    return "\n".join([*_table(summary), *warnings, *_bars(summary.change), *_header(summary.metadata)])


def _table(summary: Summary) -> Iterator[str]:
    ranks = ", ".join(f"{rank} ({count}×)" for rank, count in summary.ranks.items())
    rows = {
        "format": summary.layout,
        "base": summary.base or "unknown: neither shapes nor header identify it",
        "kind": ", ".join(summary.kinds) or "learned tokens only",
        "rank": ranks if len(summary.ranks) > 1 else str(summary.rank),
        "alpha": f"{summary.alpha:g}",
        "modules": ", ".join(f"{name} {count}" for name, count in summary.modules.items()),
        "tokens": " ".join(summary.tokens) or "none",
        "trigger": summary.trigger or "none",
        "thumbnail": summary.thumbnail or "none",
    }
    yield from (f"{name:<10} {shortened(value, 400)}" for name, value in rows.items())


def _bars(change: Mapping[str, float | None]) -> Iterator[str]:
    if not change:
        return
    yield "\nsize of the change, by block"
    largest = max((size for size in change.values() if size), default=0.0)
    width = max(map(len, change))
    for block, size in change.items():
        if size is None:
            yield f"  {block:<{width}} depends on the base's weights"
        else:
            bar = "█" * math.ceil(_BAR_WIDTH * size / largest) if largest else ""
            yield f"  {block:<{width}} {size:8.3f} {bar}".rstrip()


def _header(metadata: Mapping[str, str]) -> Iterator[str]:
    shown = {key: text for key, text in metadata.items() if key not in _SHOWN_ELSEWHERE}
    if shown:
        yield "\nheader"
        yield from (f"  {shortened(key)}: {shortened(text, 200)}" for key, text in shown.items())


def _change_by_block(weights: LoraWeights) -> dict[str, float | None]:
    squares: dict[str, float | None] = {}
    for component, path, layer in weights:
        block = block_of_module(component, path)
        norm, square = layer.norm(), squares.get(block, 0.0)
        squares[block] = None if norm is None or square is None else square + norm**2
    ordered = sorted(squares, key=block_order)
    return {block: None if (square := squares[block]) is None else math.sqrt(square) for block in ordered}


def block_of_module(component: str, path: str) -> str:
    """Return a module's block: ``unet down_blocks.0`` or ``text_encoder layers.3``."""
    match = re.match(r"(?:encoder\.)?((?:\w*_blocks|layers|\w+_refiner)\.\d+|[^.]+)", path)
    return f"{component} {shortened(match[1] if match else path, 40)}"


def block_order(block: str) -> tuple[int, int, list[Any]]:
    """Return the sorting key that puts blocks into the order of the model."""
    component, _, name = block.partition(" ")
    groups = ("down_blocks", "mid_block", "up_blocks", "transformer_blocks", "single_transformer_blocks")
    group_name, _, number = name.partition(".")
    group = groups.index(group_name) if group_name in groups else len(groups)
    return COMPONENTS.index(component), group, [int(number) if number.isdecimal() else 0, name]


def _thumbnail(metadata: Mapping[str, str]) -> str | None:
    text = metadata.get(THUMBNAIL_KEY, "")
    match = _THUMBNAIL.match(text)
    return f"{match[1]}, {(len(text) - match.end()) * 3 / 4000:.0f} kB" if match else None
