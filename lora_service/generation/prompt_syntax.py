r"""Weights and chunks in prompts, in the syntax of A1111 and, behind words and brackets, of compel; imports no torch.

    (word)  ((word))      1.1 and 1.21 times as strong
    (word:1.3)            1.3 times
    [word]                1 / 1.1 times
    (word)1.3  (word)++   as compel writes 1.3 and 1.1 ** 2; (word)- is 0.9
    word++  word--        the same for one word
    BREAK                 what follows begins a new chunk
    \( \) \[ \] \\        the characters themselves

A bracket without its partner is a character like any other.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from lora_service.errors import InputError
from lora_service.lora.safetensors_header import shortened

MAX_WEIGHT = 10.0
"""The largest weight; text encoders' states are of no use long before."""
_ROUND, _SQUARE = 1.1, 1 / 1.1
_MINUS = 0.9
"""compel's weight of ``-``."""
_USUAL_WEIGHT = 2.0
_MAX_NESTING = 64
_SYNTAX_CHARACTERS = r"()[]\+-"

_TOKEN = re.compile(
    r"""
      (?P<escaped>\\[()\[\]\\])
    | (?P<opening>[(\[])
    | :\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)       # (word:1.3)
    | \)(?:(?P<signs>\++|-+)(?![\w+-])                      # (word)++
         |(?P<behind>\d+\.\d+)(?![\w.]))?                   # (word)1.3
    | (?P<square>\])
    | (?<![\w'-])(?P<word>[^\W\d_][\w'-]*\w)(?P<wordsigns>\+{2,}|-{2,})(?![\w+-])  # word++
    | (?P<break>\bBREAK\b)
    """,
    re.VERBOSE,
)
_EDITING = re.compile(r"\[[^\[\]|:]{0,100}(?:\||:[^\[\]:]{0,100}(?::\s*)?[\d.]{1,9}\s?\])")
_COMPEL_CALL = re.compile(r"\)\s*\.(blend|and|swap)\(")


class WeightedText(NamedTuple):
    """A piece of a prompt, and the factor of its tokens' influence."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True)
class ParsedPrompt:
    """A prompt by parts, each of which begins a chunk of the text encoder, and pieces of one weight.

    Attributes:
        parts: at least one; only a single one may be empty.
        notes: lines for the user on syntax that is not understood.
    """

    parts: tuple[tuple[WeightedText, ...], ...]
    notes: tuple[str, ...] = ()

    @cached_property
    def plain(self) -> str | None:
        """The whole text where it is one part of weight 1; else None."""
        pieces = self.parts[0]
        is_plain = len(self.parts) == 1 and all(piece.weight == 1 for piece in pieces)
        return "".join(piece.text for piece in pieces) if is_plain else None


def escaped(text: str) -> str:
    """Return ``text`` so that :func:`parse_prompt` takes all of it literally."""
    return re.sub(r"[()\[\]\\]", r"\\\g<0>", text)


def parse_prompt(prompt: str, field: str = "prompt", literals: Collection[str] = ()) -> ParsedPrompt:
    """Parse the weights and breaks of ``prompt``.

    Args:
        prompt: the prompt.
        field: the input that holds it.
        literals: words that stand for themselves whatever characters they have, such as the names of learned tokens.

    Raises:
        InputError: a weight is out of range (``weight_out_of_range``).
    """
    parser = _Parser()
    for text, match in _tokens(prompt, literals):
        parser.text(text)
        if match is not None:
            parser.token(match)
    parts = parser.finish()
    strongest = max((piece for part in parts for piece in part), key=lambda piece: abs(piece.weight), default=None)
    notes = list(_notes(prompt, field))
    if strongest and abs(strongest.weight) > MAX_WEIGHT:
        expected = f"one whose weights are from {-MAX_WEIGHT:g} to {MAX_WEIGHT:g}, and not {strongest.weight:.3g}"
        raise InputError(field, shortened(prompt), expected, code="weight_out_of_range")
    if strongest and abs(strongest.weight) > _USUAL_WEIGHT:
        shown = f"{shortened(strongest.text.strip(), 60)!r} the weight {strongest.weight:.3g}"
        notes.append(f"warning: the {field.replace('_', ' ')} gives {shown}; pictures mostly break above 2")
    return ParsedPrompt(parts, tuple(notes))


def _tokens(prompt: str, literals: Collection[str]) -> Iterator[tuple[str, re.Match[str] | None]]:
    """Yield the text before each token of the syntax with that token, and at last the rest with None."""
    words = sorted((w for w in literals if set(w) & set(_SYNTAX_CHARACTERS)), key=len, reverse=True)
    literal = re.compile("|".join(map(re.escape, words))) if words else None
    done = position = 0
    while match := _TOKEN.search(prompt, position):
        literal_match = literal.search(prompt, position) if literal else None
        if literal_match and literal_match.start() <= match.start():
            position = literal_match.end()
            continue
        yield prompt[done : match.start()], match
        done = position = match.end()
    yield prompt[done:], None


class _Parser:
    """Collects pieces; a bracket counts only once its partner was met.

    Attributes:
        parts: the parts so far, of pieces as ``[text, weight]``, which closing brackets change.
        opened: the brackets that are open, with the part and the piece that they stand in as literal text.
    """

    def __init__(self) -> None:
        self.parts: list[list[list[str | float]]] = [[]]
        self.opened: list[tuple[str, int, int]] = []

    def text(self, text: str, weight: float = 1.0) -> None:
        if text:
            self.parts[-1].append([text, weight])

    def token(self, match: re.Match[str]) -> None:
        if match["escaped"]:
            self.text(match[0][1])
        elif match["opening"]:
            if len(self.opened) < _MAX_NESTING:
                self.opened.append((match[0], len(self.parts) - 1, len(self.parts[-1])))
            self.text(match[0])
        elif match["break"]:
            self.parts.append([])
        elif match["word"]:
            self.text(match["word"], _compel_weight(match["wordsigns"]))
        elif match["square"]:
            self._close("[", match[0], _SQUARE)
        elif match["weight"]:
            self._close("(", match[0], float(match["weight"]))
        elif match["behind"]:
            self._close("(", match[0], float(match["behind"]))
        else:
            self._close("(", match[0], _compel_weight(match["signs"]) if match["signs"] else _ROUND)

    def _close(self, opening: str, literal: str, weight: float) -> None:
        """Weight everything since the last such bracket; without one, the closing one is text."""
        at = next((i for i in reversed(range(len(self.opened))) if self.opened[i][0] == opening), None)
        if at is None:
            self.text(literal)
            return
        _, part, index = self.opened[at]
        del self.opened[at:]  # what was opened within and not closed is text
        self.parts[part][index][0] = ""
        for number in range(part, len(self.parts)):
            for piece in self.parts[number][index if number == part else 0 :]:
                piece[1] = float(piece[1]) * weight

    def finish(self) -> tuple[tuple[WeightedText, ...], ...]:
        """Return the parts that have text, at least one, with neighbours of one weight joined."""
        parts = [tuple(_joined(part)) for part in self.parts]
        return tuple(part for part in parts if any(piece.text.strip() for piece in part)) or (parts[0],)


def _joined(pieces: list[list[str | float]]) -> Iterator[WeightedText]:
    text, weight = "", 1.0
    for each in pieces:
        piece = WeightedText(str(each[0]), float(each[1]))
        if not piece.text:
            continue
        if text and piece.weight != weight:
            yield WeightedText(text, weight)
            text = ""
        text, weight = text + piece.text, piece.weight
    if text:
        yield WeightedText(text, weight)


def _compel_weight(signs: str) -> float:
    return float((_ROUND if signs[0] == "+" else _MINUS) ** len(signs))


def _notes(prompt: str, field: str) -> Iterator[str]:
    name = field.replace("_", " ")
    if match := _EDITING.search(prompt):
        yield (
            f"warning: the {name} has {shortened(match[0], 60)!r}: [from:to:when] and [one|other], which change a "
            "prompt between steps, are not done here; it is read as [text], a little weaker"
        )
    if match := _COMPEL_CALL.search(prompt):
        yield f"warning: the {name} has compel's .{match[1]}(), which is not done here; it is read as text"
