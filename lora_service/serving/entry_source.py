"""An entry's source as Cog's build reads it: the syntax alone, and as names only the file's own literal constants.

``cog build`` never imports an entry. It reads the syntax tree, takes literals as they are spelled, and silently drops
much of what it cannot read: a limit, a description, a default. `EntryReader` reads the same way and raises at all that
the build would refuse or misread.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

from lora_service.errors import EntryError

LiteralValue: TypeAlias = "bool | int | float | str | list[LiteralValue] | dict[str, LiteralValue] | None"

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_MAX_INT = 2**63 - 1  # the build keeps whole numbers in 64 bits


@dataclass(frozen=True)
class EntrySource:
    """A parsed file."""

    path: Path
    text: str
    tree: ast.Module

    @staticmethod
    def read(path: Path) -> EntrySource:
        """Parse a file.

        Raises:
            EntryError: it is not Python.
        """
        text = path.read_text(encoding="utf-8")
        try:
            return EntrySource(path, text, ast.parse(text))
        except SyntaxError as error:
            place, problem = f"{path.name}:{error.lineno}", f"it is not Python ({error.msg})"
            raise EntryError(place, problem, "write what Python can parse", code="syntax_error") from error

    @cached_property
    def constants(self) -> dict[str, ast.expr]:
        """The top level's assignments by name, without names assigned twice, for which the build takes either value."""
        constants: dict[str, ast.expr] = {}
        ambiguous: set[str] = set()
        for statement in self.tree.body:
            for name, value in _assignments(statement):
                if name in constants:
                    ambiguous.add(name)
                constants[name] = value
        return {name: value for name, value in constants.items() if name not in ambiguous}

    @cached_property
    def imports(self) -> dict[str, str]:
        """The module of each name that ``from module import name`` imports."""
        return {
            alias.asname or alias.name: statement.module or ""
            for statement in self.tree.body
            if isinstance(statement, ast.ImportFrom)
            for alias in statement.names
        }

    def spelling(self, node: ast.expr) -> str:
        """Return the text of an expression, without parentheses around it."""
        return ast.get_source_segment(self.text, node) or ast.unparse(node)

    def in_parentheses(self, node: ast.expr) -> bool:
        """Return True when the value of an argument, an assignment or a list stands in parentheses of its own."""
        lines = self.text.split("\n")
        before = lines[node.lineno - 1].encode()[: node.col_offset].decode()
        return "".join([*lines[: node.lineno - 1], before]).rstrip().endswith("(")


def _assignments(statement: ast.stmt) -> list[tuple[str, ast.expr]]:
    match statement:
        case ast.Assign(targets=targets, value=value):
            return [(target.id, value) for target in targets if isinstance(target, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
            return [(name, value)]
        case ast.AugAssign(target=ast.Name(id=name), value=value):
            return [(name, value)]
    return []


@dataclass(frozen=True)
class EntryReader:
    """Reads the values of one parameter.

    Every method raises `EntryError` at a value that the build would refuse or misread.

    Attributes:
        source: the file.
        field: the parameter, or the function where no parameter is meant, for messages.
    """

    source: EntrySource
    field: str

    def error(self, node: ast.AST, problem: str, remedy: str, *, code: str = "unreadable_value") -> EntryError:
        """Make the error for a node."""
        place = f"{self.source.path.name}:{getattr(node, 'lineno', 1)}"
        return EntryError(place, problem, remedy, code=code, field=self.field)

    def default(self, node: ast.expr) -> LiteralValue:
        """Read a literal, or the name of a literal constant of the file."""
        return self._resolved(node, "default", "makes the field required")

    def description(self, node: ast.expr) -> str:
        """Read one string literal, or the name of such a constant of the file."""
        value = self._resolved(node, "description", "is dropped")
        if not isinstance(value, str):
            raise self.error(node, f"the description is {value!r}", "write one string")
        return value

    def string(self, node: ast.expr) -> str:
        """Read a string literal; the build drops names."""
        value = self._direct_literal(node)
        if not isinstance(value, str):
            raise self.error(node, f"`{self.source.spelling(node)}` is not a string", "write one string literal")
        return value

    def number(self, node: ast.expr) -> int | float:
        """Read a number literal; the build drops names and expressions."""
        value = self._direct_literal(node)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(node, f"`{self.source.spelling(node)}` is not a number", "write the number itself")
        return int(value) if value == int(value) else value

    def flag(self, node: ast.expr) -> bool:
        """Read ``True`` or ``False``."""
        value = self._direct_literal(node)
        if not isinstance(value, bool):
            raise self.error(node, f"`{self.source.spelling(node)}` is not a flag", "write True or False")
        return value

    def choices(self, node: ast.expr) -> list[LiteralValue]:
        """Read a list literal, a list or tuple constant, ``list(D.keys())``, ``list(D.values())``, or a sum of them."""
        constants = self.source.constants
        match node:
            case ast.List():
                return self._items(node)
            case ast.Name(id=name) if isinstance(constant := constants.get(name), ast.List | ast.Tuple):
                return self._items(constant)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return self.choices(left) + self.choices(right)
            case ast.Call(
                func=ast.Name(id="list"),
                args=[ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="keys" | "values" as part), args=[])],
            ) if isinstance(constant := constants.get(name), ast.Dict):
                pairs = self._pairs(constant)
                return [key if part == "keys" else value for key, value in pairs]
        raise self.error(
            node,
            f"the choices `{self.source.spelling(node)}` are refused, since the build reads only literals of this file",
            "write a list of literals, or the name of such a list in this file",
        )

    def literal(self, node: ast.expr) -> LiteralValue:
        """Read a literal as the build does, by its spelling."""
        match node:
            case ast.Constant(value=str()):
                return self._string(node)
            case ast.Constant(value=None | True | False as value):
                return value
            case ast.Constant(value=int() | float()) | ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=ast.Constant()):
                return self._number(node)
            case ast.List() | ast.Tuple():
                return self._items(node)
            case ast.Dict():
                return {str(key): value for key, value in self._pairs(node)}
        raise self.error(node, f"`{self.source.spelling(node)}` is not a literal", "write the value itself")

    def _resolved(self, node: ast.expr, argument: str, effect: str) -> LiteralValue:
        value = self.source.constants.get(node.id, node) if isinstance(node, ast.Name) else node
        if self.source.in_parentheses(value) or not _is_literal(value):
            raise self.error(
                node,
                f"the {argument} `{self.source.spelling(node)}` is no plain literal of this file, "
                f"which silently {effect}",
                "write one literal, or the name of a literal assigned once in this file",
            )
        return self.literal(value)

    def _direct_literal(self, node: ast.expr) -> LiteralValue:
        if self.source.in_parentheses(node) or not _is_literal(node):
            problem = f"`{self.source.spelling(node)}` is no plain literal, so the build silently drops it"
            raise self.error(node, problem, "write the value itself")
        return self.literal(node)

    def _string(self, node: ast.Constant) -> str:
        spelling = self.source.spelling(node)
        plain = spelling.removeprefix("r")
        quotes = 3 if spelling.startswith(('"""', "'''")) else 1
        if plain[:1] not in ("'", '"') or plain[quotes:-quotes] != node.value:
            raise self.error(
                node,
                f"the build does not read {spelling} as Python does, only its letters between the outer quotes",
                "write one plain string without escapes",
            )
        return str(node.value)

    def _number(self, node: ast.expr) -> int | float:
        spelling = self.source.spelling(node)
        if not _NUMBER.fullmatch(spelling):
            raise self.error(node, f"the build cannot read the number {spelling}", "write plain decimal digits")
        value = ast.literal_eval(node)
        if isinstance(value, int) and abs(value) > _MAX_INT:
            raise self.error(node, f"the build cannot hold {spelling}", f"write at most {_MAX_INT}")
        return float(value) if isinstance(value, float) else int(value)

    def _items(self, node: ast.List | ast.Tuple) -> list[LiteralValue]:
        spelling = self.source.spelling(node)
        tokens = tokenize.generate_tokens(io.StringIO(spelling).readline)
        if any(token.type == tokenize.COMMENT for token in tokens):
            raise self.error(node, "the build reads a comment as an item of the list", "write the comment above it")
        for item in node.elts:
            if isinstance(node, ast.List) and self.source.in_parentheses(item):
                raise self.error(item, "the build cannot read an item in parentheses", "write it without them")
        return [self.literal(item) for item in node.elts]

    def _pairs(self, node: ast.Dict) -> list[tuple[LiteralValue, LiteralValue]]:
        if None in node.keys:
            raise self.error(node, "the build leaves out what `**` unpacks", "write the pairs themselves")
        return [
            (self.literal(key), self.literal(value))
            for key, value in zip(node.keys, node.values, strict=True)
            if key is not None
        ]


def _is_literal(node: ast.expr) -> bool:
    signed = isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant)
    return signed or isinstance(node, ast.Constant | ast.List | ast.Tuple | ast.Dict)
