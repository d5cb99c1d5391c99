"""Type annotations of an entry as JSON schema, for the types that Cog takes as input and output."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

from lora_service.serving.entry_source import EntryReader

JsonSchema = dict[str, Any]

_SCALARS: dict[str, JsonSchema] = {
    "bool": {"type": "boolean"},
    "float": {"type": "number"},
    "int": {"type": "integer"},
    "str": {"type": "string"},
    "Path": {"type": "string", "format": "uri"},
    "Secret": {"type": "string", "format": "password", "writeOnly": True, "x-cog-secret": True},
}
_FROM_COG = ("Path", "Secret")
_IN_UNIONS = ("bool", "float", "int", "str")
_LISTS = ("list", "List")
_ITERATORS = ("Iterator", "AsyncIterator")
_INPUTS = "write one of str, int, float, bool, Path, Secret, list[...] of one, Optional[...] of one, or str | int"
_OUTPUTS = "write one of Path, str, int, float, bool, dict, a BaseModel of this file, list[...] or Iterator[...]"


@dataclass(frozen=True)
class InputType:
    """What an input may be: one scalar type, or several as a union; a list of it; or nothing at all."""

    names: tuple[str, ...]
    many: bool = False
    optional: bool = False

    def schema(self) -> JsonSchema:
        """The JSON schema, without ``nullable`` at its top."""
        if len(self.names) > 1:
            nullable = {"nullable": True} if self.optional else {}
            return {"anyOf": [_SCALARS[name] | nullable for name in self.names]}
        scalar = dict(_SCALARS[self.names[0]])
        return {"type": "array", "items": scalar} if self.many else scalar


def read_input(reader: EntryReader, node: ast.expr) -> InputType:
    """The type of an input.

    Raises:
        EntryError: Cog's build refuses the type, or the server would pass something else than it says.
    """
    members = _members(node)
    optional = any(_is_none(member) for member in members)
    kinds = [member for member in members if not _is_none(member)]
    if len(kinds) == 1:
        element = _element(kinds[0], _LISTS)
        return InputType((_scalar(reader, element or kinds[0], node),), many=element is not None, optional=optional)
    names = tuple(_scalar(reader, kind, node) for kind in kinds)
    if not names or set(names) - set(_IN_UNIONS):
        raise reader.refuse(node, f"`{ast.unparse(node)}` is refused as an input type", _INPUTS)
    return InputType(names, optional=optional)


def read_output(reader: EntryReader, node: ast.expr | None, line: ast.AST) -> JsonSchema:
    """The schema of what an entry returns.

    Raises:
        EntryError: Cog's build refuses the type.
    """
    if node is None:
        raise reader.refuse(line, "the type of the output is missing", _OUTPUTS)
    return {"title": "Output"} | _output(reader, node)


def _output(reader: EntryReader, node: ast.expr) -> JsonSchema:
    if (element := _element(node, _LISTS)) is not None:
        return {"type": "array", "items": _output(reader, element)}
    if (element := _element(node, _ITERATORS)) is not None:
        return {"type": "array", "items": _output(reader, element), "x-cog-array-type": "iterator"}
    match node:
        case ast.Name(id="dict" | "Any"):
            return {"type": "object"}
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[_, value])):
            return {"type": "object", "additionalProperties": _output(reader, value)}
        case ast.Name(id=name) if name in _SCALARS:
            return dict(_SCALARS[_scalar(reader, node, node)])
        case ast.Name(id=name) if (model := _model(reader, name)) is not None:
            return _fields(reader, model)
    raise reader.refuse(node, f"`{ast.unparse(node)}` is refused as an output type", _OUTPUTS)


def _model(reader: EntryReader, name: str) -> ast.ClassDef | None:
    for statement in reader.source.tree.body:
        if isinstance(statement, ast.ClassDef) and statement.name == name:
            bases = [base.id for base in statement.bases if isinstance(base, ast.Name)]
            return statement if "BaseModel" in bases else None
    return None


def _fields(reader: EntryReader, model: ast.ClassDef) -> JsonSchema:
    properties: JsonSchema = {}
    required = []
    for field in model.body:
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        kinds = [member for member in _members(field.annotation) if not _is_none(member)]
        optional = len(kinds) < len(_members(field.annotation))
        schema = _output(reader, kinds[0] if len(kinds) == 1 else field.annotation)
        name = field.target.id
        properties[name] = schema | {"title": title(name)} | ({"nullable": True} if optional else {})
        if not optional and field.value is None:
            required.append(name)
    return {"type": "object", "properties": properties} | ({"required": required} if required else {})


def title(name: str) -> str:
    """A parameter's name as a form shows it: ``max_steps`` becomes ``Max Steps``."""
    return " ".join(part[:1].upper() + part[1:] for part in name.split("_"))


def _members(node: ast.expr) -> list[ast.expr]:
    """The members of a union, ``None`` among them; of anything else, itself."""
    match node:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _members(left) + _members(right)
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
            return [*_members(inner), ast.Constant(None)]
        case ast.Subscript(value=ast.Name(id="Union"), slice=ast.Tuple(elts=members)):
            return [part for member in members for part in _members(member)]
    return [node]


def _element(node: ast.expr, names: tuple[str, ...]) -> ast.expr | None:
    match node:
        case ast.Subscript(value=ast.Name(id=name), slice=element) if name in names:
            return element
    return None


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _scalar(reader: EntryReader, node: ast.expr, whole: ast.expr) -> str:
    name = node.id if isinstance(node, ast.Name) else ""
    if name not in _SCALARS:
        raise reader.refuse(whole, f"`{ast.unparse(whole)}` is refused as an input type", _INPUTS)
    if name in _FROM_COG and reader.source.imports.get(name) != "cog":
        problem = f"{name} is not imported from cog, so the server would pass the bare text of the request"
        raise reader.refuse(whole, problem, f"write from cog import {name}")
    return name
