"""Reads an entry's inputs and output from its source by the rules of Cog's build.

The build's static parser takes only part of Python and silently breaks some of the rest: a limit that is a name is
dropped, a default that is an expression makes the field required. All of that raises `EntryError` here, so that the
schema of the server is that of a built image.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from lora_service.serving.entries import (
    SCALARS,
    EntryParameter,
    EntryPoint,
    EntrySignature,
    InputType,
    JsonSchema,
    Missing,
    title,
)
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
"""Arguments of ``Input`` that go into the schema: the key there, and the method that reads the value."""

_FROM_COG = ("Path", "Secret")
_IN_UNIONS = ("bool", "float", "int", "str")
_LISTS = ("list", "List")
_ITERATORS = ("Iterator", "AsyncIterator")
_INPUT_TYPES = "write one of str, int, float, bool, Path, Secret, list[...] of one, Optional[...] of one, or str | int"
_OUTPUT_TYPES = "write one of Path, str, int, float, bool, dict, a BaseModel of this file, list[...] or Iterator[...]"


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
        remedy = "do it inside the function's body"
        raise reader.error(function.decorator_list[0], problem, remedy, code="unsupported_signature")
    parameters = tuple(
        _read_parameter(EntryReader(source, argument.arg), argument, default)
        for argument, default in _arguments(reader, function)
    )
    return EntrySignature(entry, parameters, _output_schema(reader, function.returns, function))


def _find(reader: EntryReader, name: str) -> _Function:
    body: list[ast.stmt] = reader.source.tree.body
    for statement in body:
        if isinstance(statement, _Function) and statement.name == name:
            return statement
        if isinstance(statement, ast.ClassDef) and statement.name == name:
            for method in statement.body:
                if isinstance(method, _Function) and method.name == "run":
                    return method
            remedy = "write def run(self, ...) -> Path"
            raise reader.error(statement, "the class has no method run", remedy, code="entry_missing")
    problem = "the file's top level does not define it"
    raise reader.error(reader.source.tree, problem, f"write def {name} there", code="entry_missing")


def _arguments(reader: EntryReader, function: _Function) -> Iterator[tuple[ast.arg, ast.expr | None]]:
    """Yield each input with its default, in the order of the form."""
    arguments = function.args
    if arguments.vararg or arguments.kwarg or arguments.posonlyargs:
        problem = "it has positional-only, * or ** arguments, which no request can fill"
        raise reader.error(function, problem, "name every input", code="unsupported_signature")
    bare: list[ast.expr | None] = [None] * (len(arguments.args) - len(arguments.defaults))
    positional = list(zip(arguments.args, [*bare, *arguments.defaults], strict=True))
    if positional and positional[0][0].arg == "self":
        positional = positional[1:]
    yield from positional
    yield from zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)


def _read_parameter(reader: EntryReader, argument: ast.arg, default: ast.expr | None) -> EntryParameter:
    if argument.annotation is None:
        remedy = f"write {argument.arg}: str, or another type"
        raise reader.error(argument, "the type is missing", remedy, code="unsupported_type")
    input_type = _input_type(reader, argument.annotation)
    if default is None:
        parameter = EntryParameter(argument.arg, argument.lineno, input_type)
    elif isinstance(default, ast.Call):
        parameter = _read_input_call(reader, EntryParameter(argument.arg, argument.lineno, input_type), default)
    else:
        parameter = EntryParameter(argument.arg, argument.lineno, input_type, reader.default(default))
    _check_default(reader, argument, parameter)
    return parameter


def _read_input_call(reader: EntryReader, bare: EntryParameter, call: ast.Call) -> EntryParameter:
    """Read a parameter whose default is ``Input(...)``."""
    if not (isinstance(call.func, ast.Name) and call.func.id == "Input"):
        problem = f"the default calls `{ast.unparse(call.func)}`"
        raise reader.error(call, problem, "write Input(...) with literals, after from cog import Input")
    if call.args:
        problem = f"Input's default `{ast.unparse(call.args[0])}` has no name, which makes the field required"
        raise reader.error(call.args[0], problem, "write default=...")
    values = {keyword.arg: keyword.value for keyword in call.keywords}
    for name in values.keys() - _NOTES.keys() - {"default", "choices"}:
        problem = f"Input(`{name or '**'}`) cannot be read without running the file"
        raise reader.error(call, problem, "write default=... and the limits as literals")
    return EntryParameter(
        bare.name,
        bare.line,
        bare.type,
        default=reader.default(values["default"]) if "default" in values else Missing.DEFAULT,
        choices=tuple(reader.choices(values["choices"])) if "choices" in values else (),
        notes={key: note(reader, values[name]) for name, (key, note) in _NOTES.items() if name in values},
    )


def _check_default(reader: EntryReader, argument: ast.arg, parameter: EntryParameter) -> None:
    """Refuse choices and defaults that no client can use: the build takes them, and the server checks no default."""
    input_type, default, notes = parameter.type, parameter.default, parameter.notes
    if parameter.choices and (input_type.many or len(input_type.names) > 1):
        problem = "choices hold for one value only"
        raise reader.error(argument, problem, "write str or int as the type", code="unsupported_type")
    if default is Missing.DEFAULT or (default is None and input_type.optional):
        return
    if default is None:
        problem = "a default of None without Optional makes the field required"
        raise reader.error(argument, problem, "write Optional[...] around the type", code="invalid_default")
    if parameter.choices and default not in parameter.choices:
        problem = f"the default {default!r} is not among the choices"
        raise reader.error(argument, problem, "write one of them", code="invalid_default")
    low, high = notes.get("minimum"), notes.get("maximum")
    for bound, sign in ((low, 1), (high, -1)):
        if isinstance(bound, int | float) and isinstance(default, int | float) and sign * (default - bound) < 0:
            problem = f"the default {default!r} is outside its own limits"
            raise reader.error(argument, problem, "write one inside", code="invalid_default")


def _input_type(reader: EntryReader, node: ast.expr) -> InputType:
    """Read the type of an input.

    Raises:
        EntryError: Cog's build refuses the type, or the server would pass a value of another type.
    """
    members = _members(node)
    optional = any(_is_none(member) for member in members)
    types = [member for member in members if not _is_none(member)]
    if len(types) == 1:
        element = _element(types[0], _LISTS)
        return InputType((_scalar(reader, element or types[0], node),), many=element is not None, optional=optional)
    names = tuple(_scalar(reader, member, node) for member in types)
    if not names or set(names) - set(_IN_UNIONS):
        problem = f"`{ast.unparse(node)}` is refused as an input type"
        raise reader.error(node, problem, _INPUT_TYPES, code="unsupported_type")
    return InputType(names, optional=optional)


def _output_schema(reader: EntryReader, node: ast.expr | None, function: ast.AST) -> JsonSchema:
    """Return the schema of an entry's output.

    Raises:
        EntryError: Cog's build refuses the type.
    """
    if node is None:
        raise reader.error(function, "the type of the output is missing", _OUTPUT_TYPES, code="unsupported_type")
    return {"title": "Output"} | _type_schema(reader, node)


def _type_schema(reader: EntryReader, node: ast.expr) -> JsonSchema:
    if (element := _element(node, _LISTS)) is not None:
        return {"type": "array", "items": _type_schema(reader, element)}
    if (element := _element(node, _ITERATORS)) is not None:
        return {"type": "array", "items": _type_schema(reader, element), "x-cog-array-type": "iterator"}
    match node:
        case ast.Name(id="dict" | "Any"):
            return {"type": "object"}
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[_, value])):
            return {"type": "object", "additionalProperties": _type_schema(reader, value)}
        case ast.Name(id=name) if name in SCALARS:
            return dict(SCALARS[_scalar(reader, node, node)])
        case ast.Name(id=name) if (model := _base_model(reader, name)) is not None:
            return _model_schema(reader, model)
    problem = f"`{ast.unparse(node)}` is refused as an output type"
    raise reader.error(node, problem, _OUTPUT_TYPES, code="unsupported_type")


def _base_model(reader: EntryReader, name: str) -> ast.ClassDef | None:
    for statement in reader.source.tree.body:
        if isinstance(statement, ast.ClassDef) and statement.name == name:
            bases = [base.id for base in statement.bases if isinstance(base, ast.Name)]
            return statement if "BaseModel" in bases else None
    return None


def _model_schema(reader: EntryReader, model: ast.ClassDef) -> JsonSchema:
    properties: JsonSchema = {}
    required = []
    for field in model.body:
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        types = [member for member in _members(field.annotation) if not _is_none(member)]
        optional = len(types) < len(_members(field.annotation))
        schema = _type_schema(reader, types[0] if len(types) == 1 else field.annotation)
        name = field.target.id
        properties[name] = schema | {"title": title(name)} | ({"nullable": True} if optional else {})
        if not optional and field.value is None:
            required.append(name)
    return {"type": "object", "properties": properties} | ({"required": required} if required else {})


def _members(node: ast.expr) -> list[ast.expr]:
    """Return the members of a union, with ``None``; of anything else, itself."""
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
    if name not in SCALARS:
        problem = f"`{ast.unparse(whole)}` is refused as an input type"
        raise reader.error(whole, problem, _INPUT_TYPES, code="unsupported_type")
    if name in _FROM_COG and reader.source.imports.get(name) != "cog":
        problem = f"{name} is not imported from cog, so the server would pass the bare text of the request"
        raise reader.error(whole, problem, f"write from cog import {name}", code="unsupported_type")
    return name
