"""The body of a request as a file, in memory as long as it is small."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Request

from lora_service.gateway.problems import Problem

_IN_MEMORY = 1024**2


@asynccontextmanager
async def received(request: Request, most: int) -> AsyncIterator[tempfile.SpooledTemporaryFile[bytes]]:
    """Yield a file with the body, at its start.

    Raises:
        Problem: it has more than ``most`` bytes (413).
    """
    size = 0
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as file:
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise Problem(413, f"The content of this request may have {most} bytes at most.")
            file.write(part)
        file.seek(0)
        yield file
