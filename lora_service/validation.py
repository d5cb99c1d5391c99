"""What the two entries' inputs share when they are validated."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator


def _whole(value: Any) -> Any:
    """Cog hands an int over as a float when the client wrote 512.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Int = Annotated[int, BeforeValidator(_whole)]

_LIMITS = {
    "greater_than_equal": ("ge", "at least"),
    "less_than_equal": ("le", "at most"),
    "greater_than": ("gt", "more than"),
    "less_than": ("lt", "less than"),
}


def wanted(error: Any) -> str:
    """The end of "it must be …" for one of pydantic's errors."""
    if error["type"] in _LIMITS:
        key, words = _LIMITS[error["type"]]
        return f"{words} {error['ctx'][key]}"
    if error["type"] == "literal_error":
        return f"one of {error['ctx']['expected']}"
    if error["type"] == "extra_forbidden":
        return "left out: there is no input of that name"
    return str(error["msg"]).removeprefix("Input should be ").removeprefix("String should have ")
