"""The one way from a pydantic error to a sentence, and the types that validated inputs share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ValidationError
from pydantic_core import PydanticCustomError

from lora_service.errors import InputError


def _to_int(value: Any) -> Any:
    """Cog hands an int over as a float when the client wrote 512.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def without_surrogates(value: Any) -> Any:
    """Return a value; text that no file and no tokenizer can hold, like half of an emoji, is refused."""
    if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
        raise PydanticCustomError("lone_surrogate", "text without half characters (lone surrogates)")
    return value


Model = TypeVar("Model", bound=BaseModel)
Int = Annotated[int, BeforeValidator(_to_int)]

_LIMITS = {
    "greater_than_equal": ("ge", "at least"),
    "less_than_equal": ("le", "at most"),
    "greater_than": ("gt", "more than"),
    "less_than": ("lt", "less than"),
}

_TYPES = {
    **dict.fromkeys(("bool_parsing", "bool_type"), "true or false"),
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_parsing", "float_type"), "a number"),
    "string_type": "text",
}


def validate(model: type[Model], values: Mapping[str, Any]) -> Model:
    """Return ``values`` as a ``model``; an input that is None is one that was left out.

    Raises:
        InputError: a value cannot be used.
    """
    try:
        return model(**{name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        raise first_error(error) from error


def first_error(error: ValidationError) -> InputError:
    """Return the first of the refused fields as our own error; its ``field`` is "" for the whole object."""
    first = error.errors()[0]
    return InputError(str(first["loc"][0]) if first["loc"] else "", first["input"], _expected(first))


def _expected(error: Any) -> str:
    if error["type"] in _LIMITS:
        key, words = _LIMITS[error["type"]]
        return f"{words} {error['ctx'][key]}"
    if error["type"] in _TYPES:
        return _TYPES[error["type"]]
    if error["type"] == "literal_error":
        return f"one of {error['ctx']['expected']}"
    if error["type"] == "extra_forbidden":
        return "left out: there is nothing of that name"
    return str(error["msg"]).removeprefix("Input should be ").removeprefix("String should have ")
