"""Writes the OpenAPI document that Cog's build puts into an image and Cog's server checks requests against.

Its content is that of the build (``cog build`` 0.23): clients, forms and the replicate client read it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from lora_service.serving.entries import (
    EntryParameter,
    EntrySignature,
    JsonSchema,
    Missing,
    check_shared_choices,
    title,
)

SCHEMA_PATH = Path(".cog") / "openapi_schema.json"
"""The document's path in the working folder of Cog's server."""

_STATUSES = ["starting", "processing", "succeeded", "canceled", "failed"]


@dataclass(frozen=True)
class _JobNames:
    """The names of one kind of job in the document."""

    verb: str
    job: str
    prefix: str

    @property
    def jobs(self) -> str:
        return f"{self.job}s"

    @property
    def request(self) -> str:
        return f"{self.job.title()}Request"

    @property
    def response(self) -> str:
        return f"{self.job.title()}Response"


_PREDICTION = _JobNames("predict", "prediction", "")
_TRAINING = _JobNames("train", "training", "Training")


def write(document: JsonSchema, folder: Path) -> Path:
    """Write the document for a server whose working folder is ``folder``; returns its path."""
    path = folder / SCHEMA_PATH
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return path


def openapi(*, run: EntrySignature, train: EntrySignature | None = None) -> JsonSchema:
    """Make the document of an image that runs one entry and may train with another.

    Raises:
        EntryError: the two give one input different choices.
    """
    paths = {
        "/": _answers("Root", "root__get"),
        "/health-check": _answers("Healthcheck", "healthcheck_health_check_get"),
    }
    paths |= _job_paths(_PREDICTION)
    schemas = _job_schemas(_PREDICTION, run) | _shared_schemas()
    if train is not None:
        check_shared_choices(run, train)
        paths |= _job_paths(_TRAINING)
        schemas = _job_schemas(_TRAINING, train) | schemas
    return {
        "openapi": "3.0.2",
        "info": {"title": "Cog", "version": version("cog")},
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _job_schemas(names: _JobNames, entry: EntrySignature) -> JsonSchema:
    input_name, output_name = f"{names.prefix}Input", f"{names.prefix}Output"
    schemas: JsonSchema = {input_name: _input(input_name, entry.parameters), output_name: entry.output}
    schemas |= {parameter.name: _enumeration(parameter) for parameter in entry.parameters if parameter.choices}
    properties = {"id": _field("Id"), "input": _reference(input_name)}
    schemas[names.request] = {"title": names.request, "type": "object", "properties": properties}
    schemas[names.response] = {
        "title": names.response,
        "type": "object",
        "properties": properties
        | {name: _field(title(name)) for name in ("version", "status", "error", "logs")}
        | {f"{name}_at": _field(title(f"{name}_at"), "date-time") for name in ("created", "started", "completed")}
        | {"output": _reference(output_name), "metrics": {"title": "Metrics", "type": "object"}},
    }
    return schemas


def _input(name: str, parameters: tuple[EntryParameter, ...]) -> JsonSchema:
    required = [parameter.name for parameter in parameters if parameter.required]
    return {
        "title": name,
        "type": "object",
        "properties": {parameter.name: _property(order, parameter) for order, parameter in enumerate(parameters)},
    } | ({"required": required} if required else {})


def _property(order: int, parameter: EntryParameter) -> JsonSchema:
    schema: JsonSchema = {"x-order": order} | dict(parameter.notes)
    if parameter.choices:
        schema["allOf"] = [_reference(parameter.name)]
    else:
        schema |= {"title": title(parameter.name)} | parameter.type.schema()
    if parameter.type.optional:
        schema["nullable"] = True
    if parameter.default is not Missing.DEFAULT:
        schema["default"] = parameter.default
    return schema


def _enumeration(parameter: EntryParameter) -> JsonSchema:
    return {
        "title": parameter.name,
        "description": "An enumeration.",
        "enum": list(parameter.choices),
        "type": parameter.type.schema()["type"],
    }


def _shared_schemas() -> JsonSchema:
    location = {"title": "Location", "type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]}}
    return {
        "Status": {"title": "Status", "description": "An enumeration.", "enum": _STATUSES, "type": "string"},
        "HTTPValidationError": {
            "title": "HTTPValidationError",
            "type": "object",
            "properties": {"detail": {"title": "Detail", "type": "array", "items": _reference("ValidationError")}},
        },
        "ValidationError": {
            "title": "ValidationError",
            "required": ["loc", "msg", "type"],
            "type": "object",
            "properties": {"loc": location, "msg": _field("Message"), "type": _field("Error Type")},
        },
    }


def _job_paths(names: _JobNames) -> JsonSchema:
    identifier = f"{names.job}_id"
    invalid = {"422": _response("Validation Error", _reference("HTTPValidationError"))}
    return {
        f"/{names.jobs}": {
            "post": {
                "summary": names.verb.title(),
                "description": f"Run a single {names.job} on the model",
                "operationId": f"{names.verb}_{names.jobs}_post",
                "requestBody": {"content": _json(_reference(names.request))},
                "responses": {"200": _response("Successful Response", _reference(names.response))} | invalid,
            }
        },
        f"/{names.jobs}/{{{identifier}}}/cancel": {
            "post": {
                "summary": "Cancel",
                "operationId": f"cancel_{names.jobs}__{identifier}__cancel_post",
                "parameters": [
                    {"required": True, "schema": _field(title(identifier)), "name": identifier, "in": "path"}
                ],
                "responses": {"200": _response("Successful Response", {})} | invalid,
            }
        },
    }


def _answers(summary: str, identifier: str) -> JsonSchema:
    responses = {"200": _response("Successful Response", {})}
    return {"get": {"summary": summary, "operationId": identifier, "responses": responses}}


def _response(description: str, schema: JsonSchema) -> JsonSchema:
    return {"description": description, "content": _json(schema)}


def _json(schema: JsonSchema) -> JsonSchema:
    return {"application/json": {"schema": schema}}


def _field(name: str, form: str | None = None) -> JsonSchema:
    return {"title": name, "type": "string"} | ({"format": form} if form else {})


def _reference(name: str) -> JsonSchema:
    return {"$ref": f"#/components/schemas/{name}"}
