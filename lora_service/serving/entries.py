"""The two entries of Cog as data: file and name, and the inputs and output that the source declares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lora_service.errors import EntryError, ServingError

if TYPE_CHECKING:
    from lora_service.serving.entry_source import LiteralValue

Mode = Literal["predict", "train"]
JsonSchema = dict[str, Any]

HOME = Path(__file__).resolve().parents[2]
"""The folder of the entries: beside the package, as in the repository and in the Cog images."""

SCALARS: Mapping[str, JsonSchema] = {
    "bool": {"type": "boolean"},
    "float": {"type": "number"},
    "int": {"type": "integer"},
    "str": {"type": "string"},
    "Path": {"type": "string", "format": "uri"},
    "Secret": {"type": "string", "format": "password", "writeOnly": True, "x-cog-secret": True},
}
"""The JSON schemas of Cog's scalar types."""

_ENTRIES: dict[Mode, tuple[str, str]] = {"predict": ("predict.py", "Predictor"), "train": ("train.py", "train")}


@dataclass(frozen=True)
class EntryPoint:
    """A file and the class or function in it that Cog calls."""

    path: Path
    name: str

    @property
    def reference(self) -> str:
        """The entry as Cog's ``run:`` and ``train:`` name it; Cog takes an absolute path as well as a relative one."""
        return f"{self.path}:{self.name}"


def find(mode: Mode, folder: Path = HOME) -> EntryPoint:
    """Find the entry of a mode.

    Raises:
        ServingError: the folder does not hold the file.
    """
    file, name = _ENTRIES[mode]
    path = folder.resolve() / file
    if not path.is_file():
        raise ServingError(
            f"The entry {file} is not in {str(folder)!r}: serve from a clone of the repository, "
            "where it lies beside the package lora_service (pip install -e .).",
            code="entry_missing",
        )
    return EntryPoint(path, name)


@dataclass(frozen=True)
class InputType:
    """The type of an input: one scalar type, a list of it, or a union of several; each may be optional."""

    names: tuple[str, ...]
    many: bool = False
    optional: bool = False

    def schema(self) -> JsonSchema:
        """Return the JSON schema, without ``nullable`` at its top."""
        if len(self.names) > 1:
            nullable = {"nullable": True} if self.optional else {}
            return {"anyOf": [SCALARS[name] | nullable for name in self.names]}
        scalar = dict(SCALARS[self.names[0]])
        return {"type": "array", "items": scalar} if self.many else scalar


class Missing(Enum):
    """The default of a parameter without one; ``None`` is a default."""

    DEFAULT = "no default"


@dataclass(frozen=True)
class EntryParameter:
    """An input; ``notes`` holds description and limits by their keys in the schema."""

    name: str
    line: int
    type: InputType
    default: LiteralValue | Missing = Missing.DEFAULT
    choices: tuple[LiteralValue, ...] = ()
    notes: Mapping[str, LiteralValue] = field(default_factory=dict)

    @property
    def required(self) -> bool:
        """True when a request must have it; an ``Optional`` without a default arrives as ``None``."""
        return self.default is Missing.DEFAULT and not (self.type.optional and len(self.type.names) == 1)


@dataclass(frozen=True)
class EntrySignature:
    """The inputs and the output of an entry."""

    entry: EntryPoint
    parameters: tuple[EntryParameter, ...]
    output: JsonSchema

    def parameter(self, name: str) -> EntryParameter | None:
        """Return the parameter of that name, if there is one."""
        return next((parameter for parameter in self.parameters if parameter.name == name), None)


def check_shared_choices(predict: EntrySignature, train: EntrySignature) -> None:
    """Check that inputs of one name have the same choices: an image with both entries has only those of predict.

    Raises:
        EntryError: a parameter of ``train`` would be checked against other choices of ``predict``.
    """
    for parameter in train.parameters:
        other = predict.parameter(parameter.name)
        if other and other.choices and parameter.choices and other.choices != parameter.choices:
            raise EntryError(
                f"{train.entry.path.name}:{parameter.line}",
                f"its choices differ from those of the input of that name in {predict.entry.path.name}, which win",
                "give one of the two inputs another name",
                code="conflicting_choices",
                field=parameter.name,
            )


def title(name: str) -> str:
    """Return a parameter's name as a form shows it: ``max_steps`` becomes ``Max Steps``."""
    return " ".join(part[:1].upper() + part[1:] for part in name.split("_"))
