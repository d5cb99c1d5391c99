"""The inputs in the OpenAPI document of a version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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


def _is_file(schema: Mapping[str, Any]) -> bool:
    return any(part.get("format") == "uri" for part in _parts(schema))


def _parts(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return a schema and those that it is made of."""
    parts = [schema, schema.get("items") or {}, *(schema.get("anyOf") or ()), *(schema.get("allOf") or ())]
    return [part for part in parts if isinstance(part, Mapping)]
