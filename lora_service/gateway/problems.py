"""Errors as Replicate's API has them: ``title``, ``detail`` and ``status`` (RFC 7807)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from lora_service.errors import LoraServiceError, shorten

_log = logging.getLogger(__name__)
_TITLES = {
    400: "Bad request",
    401: "Unauthenticated",
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    408: "Request timeout",
    409: "Conflict",
    413: "Too large",
    422: "Input validation failed",
    429: "Too many requests",
    503: "Unavailable",
}
_TYPE = "application/problem+json"
_MOST_FIELDS = 100


class Problem(Exception):
    """An answer that is an error.

    Args:
        status: HTTP's.
        detail: a sentence for the person who asked.
        headers: more headers, ``Retry-After`` say.
        fields: the refused fields, by name, with what is wrong with each.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        headers: Mapping[str, str] | None = None,
        fields: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, shorten(detail, 2000), dict(headers or {})
        self.fields = dict(fields or {})

    def response(self) -> JSONResponse:
        """Return the answer."""
        body: dict[str, Any] = {
            "title": _TITLES.get(self.status, "Error"),
            "detail": self.detail,
            "status": self.status,
        }
        if self.fields:
            body["invalid_fields"] = [
                {"field": shorten(name, 200), "type": "value_error", "description": shorten(text, 500)}
                for name, text in list(self.fields.items())[:_MOST_FIELDS]
            ]
        return JSONResponse(body, self.status, headers=self.headers, media_type=_TYPE)


def not_found(what: str) -> Problem:
    """Return the answer for what is not there, or not this user's: the two are the same to them."""
    return Problem(404, f"The requested {what} does not exist, or the token has no access to it.")


def invalid(field: str, problem: str) -> Problem:
    """Return the answer for one field that cannot be used."""
    return Problem(422, f"- {field}: {problem}", fields={field: problem})


def install(app: FastAPI) -> None:
    """Have all errors of an app answered so."""

    @app.exception_handler(Problem)
    async def _problem(request: Request, error: Problem) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        fields = {".".join(map(str, each["loc"][1:])) or "body": str(each["msg"]) for each in error.errors()}
        detail = "\n".join(f"- {name}: {text}" for name, text in fields.items())
        return Problem(422, detail, fields=fields).response()

    @app.exception_handler(LoraServiceError)
    async def _mistake(request: Request, error: LoraServiceError) -> JSONResponse:
        return Problem(422, str(error), fields={error.field: str(error)} if error.field else {}).response()

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        return Problem(error.status_code, str(error.detail), error.headers).response()

    @app.exception_handler(Exception)
    async def _defect(request: Request, error: Exception) -> JSONResponse:
        _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return Problem(500, "The gateway failed at this; its log says why.").response()
