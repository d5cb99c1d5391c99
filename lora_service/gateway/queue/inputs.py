"""A job's input as a server can take it: links that it can open in place of files, none that strangers chose.

Cog fetches the links of file inputs by itself, from any address; so those are fetched here, behind the guard of links,
and Cog gets a link to the gateway.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lora_service.downloads.fetcher import Fetcher
from lora_service.downloads.resolve import resolve
from lora_service.errors import blame_input
from lora_service.gateway import views
from lora_service.gateway.database import stored_files
from lora_service.gateway.database.tables import Job, StoredFile, Version
from lora_service.gateway.gateway import Gateway
from lora_service.gateway.schemas import file_inputs
from lora_service.gateway.uploads import chunks_of, store


def prepare(gateway: Gateway, job: Job) -> dict[str, Any]:
    """Return a job's input for its server; this may download files, and blocks until they are there.

    Raises:
        LoraServiceError: a link cannot be fetched.
    """
    with gateway.database.read() as session:
        version = session.get(Version, job.version)
    inputs = {name: value for name, value in job.input.items() if value is not None}
    if version is not None:
        until = time.monotonic() + gateway.service.max_download_seconds
        for name in file_inputs(version.openapi_schema):
            if name in inputs:
                with blame_input(name):
                    inputs[name] = _fetched(gateway, job, inputs[name], until)
        if version.weights:
            inputs["replicate_weights"] = stored_files.mark(version.weights)
    return with_links(gateway, inputs)


def with_links(gateway: Gateway, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return an input with links for servers of this gateway in place of the marks of files."""
    with gateway.database.read() as session:
        files = stored_files.find_all(session, stored_files.marked(dict(inputs)))
    # Whether its owner may open them was seen when the job was created; none of the marks is the user's own.
    return dict(stored_files.replace_marks(dict(inputs), lambda name: _link(gateway, files.get(name))))


def internal_link(gateway: Gateway, file: StoredFile) -> str:
    """Return a link to a file for Cog's servers; always the same, so that a fetched LoRA is known by it."""
    key = gateway.signer.sign(views.INTERNAL, file.id)
    return f"{gateway.callback_url}/internal/files/{file.id}/{key}/{quote(file.name)}"


def _link(gateway: Gateway, file: StoredFile | None) -> str | None:
    return internal_link(gateway, file) if file else None


def _fetched(gateway: Gateway, job: Job, value: Any, until: float) -> Any:
    """Return a file input with stored files in place of links; anything else stays as it is, for Cog to judge."""
    if isinstance(value, list):
        return [_fetched(gateway, job, item, until) for item in value]
    if not isinstance(value, str) or not value.startswith(("http://", "https://")):
        return value
    limit = gateway.settings.max_upload_bytes
    with tempfile.TemporaryDirectory(prefix="lora-gateway-") as folder:
        path = Fetcher(gateway.service).download(resolve(value), Path(folder), max_bytes=limit, until=until)
        file = store(gateway, chunks_of(path), owner=job.owner, purpose="fetched", name=path.name, job=job.id)
    return stored_files.mark(file.id)
