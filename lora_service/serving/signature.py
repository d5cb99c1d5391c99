"""An entry's inputs and output, read from its source by the rules of Cog's build.

The build's static parser takes only part of Python and breaks some of the rest in silence (a limit that is a name is
dropped, a default that is an expression makes the field required). Reading an entry here raises `EntryError` at all
of that, so the schema the server gets is the one a built image gets.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

from lora_service.serving.annotations import InputType, JsonSchema, read_input, read_output
from lora_service.serving.entries import EntryPoint
from lora_service.serving.entry_source import EntryReader, EntrySource, LiteralValue

_Function = ast.FunctionDef | ast.AsyncFunctionDef

_NOTES: Mapping[str, tuple[str, Callable[[EntryReader, ast.expr], LiteralValue]]] = MappingProxyType(
    {
        "description": ("description", EntryReader.description),
        "ge": ("minimum", EntryReader.number),
        "le": ("maximum", EntryReader.number),
        "min_length": ("minLength", EntryReader.number),
        "max_length": ("maxLength", EntryReader.number),
        "regex": ("pattern", EntryReader.string),
        "deprecated": ("deprecated", EntryReader.flag),
        "accept": ("x-cog-accept", EntryReader.string),
    }
)
"""Arguments of ``Input`` that go into the schema as they are: their name there, and how they are read."""


class Missing(Enum):
    """What stands for a default that is not given; ``None`` is one that is."""

    DEFAULT = "no default"


@dataclass(frozen=True)
class EntryParameter:
    """One input; ``notes`` holds description and limits by their name in the schema."""

    name: str
    line: int
    type: InputType
    default: LiteralValue | Missing = Missing.DEFAULT
    choices: tuple[LiteralValue, ...] = ()
    notes: Mapping[str, LiteralValue] = field(default_factory=dict)

    @property
    def required(self) -> bool:
        """Whether a request must give it; an ``Optional`` without a default arrives as ``None``."""
        return self.default is Missing.DEFAULT and not (self.type.optional and len(self.type.names) == 1)


@dataclass(frozen=True)
class EntrySignature:
    """What an entry takes and gives."""

    entry: EntryPoint
    parameters: tuple[EntryParameter, ...]
    output: JsonSchema

    def parameter(self, name: str) -> EntryParameter | None:
        """The parameter of that name, if there is one."""
        return next((parameter for parameter in self.parameters if parameter.name == name), None)


def read(entry: EntryPoint) -> EntrySignature:
    """Read an entry: a class's ``run`` or a plain function.

    Raises:
        EntryError: Cog's build would refuse or misread it; the message names file, line, parameter and remedy.
    """
    source = EntrySource.read(entry.path)
    reader = EntryReader(source, entry.name)
    function = _find(reader, entry.name)
    if function.decorator_list:
        decorator = ast.unparse(function.decorator_list[0])
        problem = f"{function.name} is decorated with @{decorator}, and inputs left out would arrive as FieldInfo"
        raise reader.refuse(function.decorator_list[0], problem, "do it inside the function's body")
    parameters = tuple(
        _read_parameter(EntryReader(source, argument.arg), argument, default)
        for argument, default in _arguments(reader, function)
    )
    return EntrySignature(entry, parameters, read_output(reader, function.returns, function))


def check_together(predict: EntrySignature, train: EntrySignature) -> None:
    """Refuse choices that differ under one name: an image that holds both entries keeps only those of predict.

    Raises:
        EntryError: a parameter of ``train`` would be checked against the choices of ``predict``.
    """
    for parameter in train.parameters:
        other = predict.parameter(parameter.name)
        if other and other.choices and parameter.choices and other.choices != parameter.choices:
            source = EntrySource.read(train.entry.path)
            problem = f"its choices differ from those of the input of that name in {predict.entry.path.name}, which win"
            node = ast.Pass(lineno=parameter.line)
            raise EntryReader(source, parameter.name).refuse(node, problem, "give one of the two inputs another name")


def _find(reader: EntryReader, name: str) -> _Function:
    body: list[ast.stmt] = reader.source.tree.body
    for statement in body:
        if isinstance(statement, _Function) and statement.name == name:
            return statement
        if isinstance(statement, ast.ClassDef) and statement.name == name:
            for method in statement.body:
                if isinstance(method, _Function) and method.name == "run":
                    return method
            raise reader.refuse(statement, "the class has no method run", "write def run(self, ...) -> Path")
    raise reader.refuse(reader.source.tree, "the file's top level does not define it", f"write def {name} there")


def _arguments(reader: EntryReader, function: _Function) -> Iterator[tuple[ast.arg, ast.expr | None]]:
    """Each input with its default, in the order of the form."""
    arguments = function.args
    if arguments.vararg or arguments.kwarg or arguments.posonlyargs:
        problem = "it has positional-only, * or ** arguments, which no request can fill"
        raise reader.refuse(function, problem, "name every input")
    bare: list[ast.expr | None] = [None] * (len(arguments.args) - len(arguments.defaults))
    positional = list(zip(arguments.args, [*bare, *arguments.defaults], strict=True))
    if positional and positional[0][0].arg == "self":
        positional = positional[1:]
    yield from positional
    yield from zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)


def _read_parameter(reader: EntryReader, argument: ast.arg, default: ast.expr | None) -> EntryParameter:
    if argument.annotation is None:
        raise reader.refuse(argument, "the type is missing", f"write {argument.arg}: str, or another type")
    kind = read_input(reader, argument.annotation)
    if default is None:
        parameter = EntryParameter(argument.arg, argument.lineno, kind)
    elif isinstance(default, ast.Call):
        parameter = _read_call(reader, EntryParameter(argument.arg, argument.lineno, kind), default)
    else:
        parameter = EntryParameter(argument.arg, argument.lineno, kind, reader.default(default))
    _check(reader, argument, parameter)
    return parameter


def _read_call(reader: EntryReader, bare: EntryParameter, call: ast.Call) -> EntryParameter:
    """A parameter whose default is ``Input(...)``."""
    if not (isinstance(call.func, ast.Name) and call.func.id == "Input"):
        problem = f"the default calls `{ast.unparse(call.func)}`"
        raise reader.refuse(call, problem, "write Input(...) with literals, after from cog import Input")
    if call.args:
        problem = f"Input's default `{ast.unparse(call.args[0])}` has no name, which makes the field required"
        raise reader.refuse(call.args[0], problem, "write default=...")
    values = {keyword.arg: keyword.value for keyword in call.keywords}
    for name in values.keys() - _NOTES.keys() - {"default", "choices"}:
        problem = f"Input(`{name or '**'}`) cannot be read without running the file"
        raise reader.refuse(call, problem, "write default=... and the limits as literals")
    return EntryParameter(
        bare.name,
        bare.line,
        bare.type,
        default=reader.default(values["default"]) if "default" in values else Missing.DEFAULT,
        choices=tuple(reader.choices(values["choices"])) if "choices" in values else (),
        notes={key: note(reader, values[name]) for name, (key, note) in _NOTES.items() if name in values},
    )


def _check(reader: EntryReader, argument: ast.arg, parameter: EntryParameter) -> None:
    """What the build lets through although no client can use it; the server does not check defaults either."""
    kind, default, notes = parameter.type, parameter.default, parameter.notes
    if parameter.choices and (kind.many or len(kind.names) > 1):
        raise reader.refuse(argument, "choices hold for one value only", "write str or int as the type")
    if default is Missing.DEFAULT or (default is None and kind.optional):
        return
    if default is None:
        problem = "a default of None without Optional makes the field required"
        raise reader.refuse(argument, problem, "write Optional[...] around the type")
    if parameter.choices and default not in parameter.choices:
        raise reader.refuse(argument, f"the default {default!r} is not among the choices", "write one of them")
    low, high = notes.get("minimum"), notes.get("maximum")
    for bound, sign in ((low, 1), (high, -1)):
        if isinstance(bound, int | float) and isinstance(default, int | float) and sign * (default - bound) < 0:
            raise reader.refuse(argument, f"the default {default!r} is outside its own limits", "write one inside")
