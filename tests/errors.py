"""Expecting one of our errors by its class, code and field, not by its sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest

from lora_service.errors import LoraServiceError

Error = TypeVar("Error", bound=LoraServiceError)


@contextmanager
def raises(kind: type[Error], *, code: str = "", field: str = "") -> Iterator[pytest.ExceptionInfo[Error]]:
    """Expect ``kind``; its ``code`` and its ``field`` are compared where one is named here.

    The message must be one line: whoever reads it sees it in a log, on a command line or in a JSON answer.
    """
    with pytest.raises(kind) as caught:
        yield caught
    error = caught.value
    assert "\n" not in str(error), f"more than one line: {error}"
    if code:
        assert error.code == code, f"{error.code}: {error}"
    if field:
        assert error.field == field, f"{error.field}: {error}"
