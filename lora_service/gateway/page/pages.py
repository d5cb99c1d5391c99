"""The pages as they are sent: the same for everybody, without a job or a name in them, which the scripts ask for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates

from lora_service import __version__
from lora_service.gateway.problems import not_found
from lora_service.serving.form import FRONT

_HERE = Path(__file__).parent
_PAGES: Mapping[str, str] = MappingProxyType(
    {"/": "teach", "/trainings/{job}": "training", "/draw": "draw", "/library": "library", "/queue": "queue"}
)
"""Templates, with a script of the same name, by path."""
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",  # pictures that were just chosen, previews of a drawing
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # with no policy: text can never become markup or script
        "trusted-types 'none'",
    )
)
_HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "Content-Security-Policy": _POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-cache",  # kept, but asked for by its ETag: an upgrade counts at once
    }
)
_templates = Jinja2Templates(_HERE / "templates")
router = APIRouter(include_in_schema=False)


def install(app: FastAPI) -> None:
    """Have an app serve the page; programs, which do not accept HTML, get the answers they got before."""
    app.include_router(router)
    app.mount("/static", _Static(directory=_HERE / "static"))


class _Static(StaticFiles):
    """Files with the headers of the page."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        """Return a file, or that it has not changed."""
        response = super().file_response(*args, **options)
        response.headers.update(_HEADERS)
        return response


def _page(path: str, name: str) -> None:
    @router.get(path, name=f"page_{name}")
    def show(request: Request) -> Response:
        """Return a page to a browser."""
        if "text/html" not in request.headers.get("accept", ""):
            raise not_found("address")
        # The inputs at the front of the forms; what they are is in the models' schemas.
        front = {mode: json.dumps(names) for mode, names in FRONT.items()}
        context = {"name": name, "version": __version__, "front": front}
        return _templates.TemplateResponse(request, f"{name}.html", context, headers=_HEADERS)


for _path, _name in _PAGES.items():
    _page(_path, _name)
