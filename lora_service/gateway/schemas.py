"""The inputs in the OpenAPI document of a version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jsonschema import Draft7Validator


def file_inputs(document: Mapping[str, Any]) -> list[str]:
    """Return the names of the inputs that are files, by a version's document."""
    properties = input_schema(document).get("properties", {})
    return [name for name, schema in properties.items() if _is_file(schema)]


def input_schema(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of the inputs in a version's document."""
    found = document.get("components", {}).get("schemas", {}).get("Input", {})
    return found if isinstance(found, dict) else {}


def secret_inputs(document: Mapping[str, Any]) -> list[str]:
    """Return the names of the inputs that hold secrets, such as a token."""
    properties = input_schema(document).get("properties", {})
    return [name for name, schema in properties.items() if any(part.get("x-cog-secret") for part in _parts(schema))]


def input_problems(document: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, str]:
    """Return what is wrong with inputs by a version's document, by their names; None is an input that was left out."""
    schema = input_schema(document)
    given = {name: value for name, value in inputs.items() if value is not None}
    problems = {
        name: "there is no input of that name; there are " + ", ".join(schema["properties"])
        for name in given
        if schema.get("properties") and name not in schema["properties"]
    }
    checked = {**schema, "components": document.get("components", {})}
    for error in Draft7Validator(checked).iter_errors(given):
        name = str(error.absolute_path[0]) if error.absolute_path else str(error.message.split("'")[1])
        problems.setdefault(name, "is required" if error.validator == "required" else error.message[:300])
    return problems


def _is_file(schema: Mapping[str, Any]) -> bool:
    return any(part.get("format") == "uri" for part in _parts(schema))


def _parts(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return a schema and those that it is made of."""
    parts = [schema, schema.get("items") or {}, *(schema.get("anyOf") or ()), *(schema.get("allOf") or ())]
    return [part for part in parts if isinstance(part, Mapping)]
