"""The scale of a LoRA and its grammar, apart from the patcher so that a request can be checked without torch.

    scale = item { "," item }
    item  = number [ "/" number ]      at most once: everything, or the UNet and the text encoders
          | block ":" number           a block and all that lies in it
          | "steps:" start "-" end     the share of the steps in which the LoRA acts, from 0 to 1

A block is ``unet``, ``text_encoder`` or XL's ``text_encoder_2``, or within the UNet ``unet.down``, ``unet.mid``,
``unet.up``, or one level of these, ``unet.down.0``. Of a transformer it is ``transformer``, or its blocks of a kind or
one of them by diffusers' names, ``transformer.single_transformer_blocks.3``. The longest name that fits a weight
counts. Without a plain number the rest has scale 1, as in diffusers' ``set_adapters``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from lora_service.errors import InputError

_LIMIT = 2.0
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?"
_SHARE = r"\d+\.?\d*|\.\d+"
_BLOCK = r"(?:unet|transformer|text_encoder)[a-z0-9_.]*"
_PLAIN = rf"{_NUMBER}(?:/{_NUMBER})?"
_ITEM = rf"(?:{_BLOCK}:{_NUMBER}|steps:(?:{_SHARE})-(?:{_SHARE}))"
SCALE_PATTERN = rf"(?:{_PLAIN}|{_ITEM})(?:,{_ITEM})*"
"""A regular expression of scales without spaces, with a plain number in front if at all."""
_EXPECTED = (
    "a number from -2 to 2 like 0.8, two for UNet and text encoder like 0.8/0.5, blocks like unet.down:0.5, a share of "
    "the steps like steps:0-0.6, or several of these with commas"
)
_UNET_PARTS = {"down_blocks": "down", "mid_block": "mid", "up_blocks": "up"}


@dataclass(frozen=True)
class Scale:
    """The factors by which a LoRA's changes are multiplied: 1 is as trained, 0 is off.

    Attributes:
        unet: that of the blocks of the UNet or transformer that have none of their own.
        text_encoder: that of the text encoders that have none of their own.
        blocks: name and factor of blocks (:func:`block_of`).
        start: the share of the steps after which the LoRA begins to act in the UNet.
        end: the share of the steps after which it acts no longer. The text encoders' part acts on the prompt, which
            is encoded once, and so in all steps.
    """

    unet: float
    text_encoder: float
    blocks: tuple[tuple[str, float], ...] = ()
    start: float = 0.0
    end: float = 1.0

    def of(self, component: str, path: str = "") -> float:
        """Return the factor of a weight; both text encoders share one unless they are named."""
        scale = self.unet if component in ("unet", "transformer") else self.text_encoder
        if not self.blocks:
            return scale
        block = block_of(component, path)
        fitting = [named for named in self.blocks if is_within(block, named[0])]
        return max(fitting, key=lambda named: len(named[0]))[1] if fitting else scale

    @property
    def is_zero(self) -> bool:
        """True if the LoRA changes nothing at this scale."""
        return self.unet == 0 and self.text_encoder == 0 and not any(scale for _, scale in self.blocks)

    @property
    def is_constant(self) -> bool:
        """True if the LoRA acts in all steps."""
        return self.start == 0 and self.end == 1

    def acts_at(self, progress: float) -> bool:
        """Return True if the LoRA acts in the step before which ``progress``, a share of all, was taken."""
        return self.start <= progress < self.end

    def check_blocks(self, known: Collection[str]) -> None:
        """Check that all named blocks are among ``known``, those that a base has.

        Raises:
            InputError: one is not (``unknown_block``).
        """
        for name, _ in self.blocks:
            if name not in known:
                expected = f"a block of this base: {', '.join(sorted(known))}"
                raise InputError("lora_scales", name, expected, code="unknown_block")


def block_of(component: str, path: str) -> str:
    """Return the name of the smallest block that a weight lies in.

    ``unet``, ``down_blocks.1.attentions.0.…`` is in ``unet.down.1``; what lies in no block is in ``unet``. The text
    encoders are one block each.
    """
    first, _, rest = path.partition(".")
    if component == "transformer":
        number = rest.partition(".")[0]
        return f"{component}.{first}.{number}" if number.isdecimal() else component
    part = _UNET_PARTS.get(first) if component == "unet" else None
    if part is None:
        return component
    level = rest.partition(".")[0]
    return f"{component}.{part}" if part == "mid" else f"{component}.{part}.{level}"


def is_within(block: str, name: str) -> bool:
    """Return True if ``block`` is the block ``name`` or lies in it."""
    return block == name or block.startswith(f"{name}.")


def with_outer_blocks(blocks: Iterable[str]) -> frozenset[str]:
    """Return blocks with those that they lie in: of ``unet.down.0`` also ``unet.down`` and ``unet``."""
    names: set[str] = set()
    for block in blocks:
        words = block.split(".")
        names.update(".".join(words[:count]) for count in range(1, len(words) + 1))
    return frozenset(names)


def parse_scale(text: str) -> Scale:
    """Parse a scale by the grammar of this module.

    Raises:
        InputError: it is none.
    """
    plain: Scale | None = None
    blocks: dict[str, float] = {}
    steps: tuple[float, float] | None = None
    for item in text.split(","):
        name, colon, value = (part.strip() for part in item.partition(":"))
        if not colon:
            if plain is not None:
                raise _refused(text)
            plain = _plain(text, name)
        elif name == "steps":
            if steps is not None:
                raise _refused(text)
            steps = _steps(text, value)
        elif re.fullmatch(_BLOCK, name) and name not in blocks:
            blocks[name] = _factor(text, value)
        else:
            raise _refused(text)
    plain = plain or Scale(1.0, 1.0)
    start, end = steps or (0.0, 1.0)
    return Scale(plain.unet, plain.text_encoder, tuple(blocks.items()), start, end)


def _plain(text: str, value: str) -> Scale:
    numbers = [_factor(text, part) for part in value.split("/")]
    if len(numbers) > 2:
        raise _refused(text)
    return Scale(unet=numbers[0], text_encoder=numbers[-1])


def _factor(text: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not -_LIMIT <= number <= _LIMIT:
        raise _refused(text)
    return number


def _steps(text: str, value: str) -> tuple[float, float]:
    match = re.fullmatch(rf"({_SHARE})\s*-\s*({_SHARE})", value)
    start, end = (float(match[1]), float(match[2])) if match else (1.0, 0.0)
    if not start < end <= 1:
        expected = (
            "steps:START-END with two shares of all steps, from 0 to 1 and the first the smaller, like steps:0-0.6"
        )
        raise InputError("lora_scales", text, expected)
    return start, end


def _refused(text: str) -> InputError:
    return InputError("lora_scales", text, _EXPECTED)
