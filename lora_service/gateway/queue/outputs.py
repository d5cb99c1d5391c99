"""Stores what a server gave back as files, and the version that a training made."""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy.orm import Session

from lora_service.gateway.database import catalog, stored_files
from lora_service.gateway.database.tables import Job
from lora_service.gateway.gateway import Gateway
from lora_service.gateway.uploads import store_data_uri


def stored(gateway: Gateway, job: Job, output: Any, stem: str = "") -> Any:
    """Return an output with the marks of stored files in place of data URIs."""
    if isinstance(output, str) and output.startswith("data:"):
        name = stem or ("lora" if job.engine == "train" else "out")
        return store_data_uri(gateway, output, owner=job.owner, purpose="output", stem=name, job=job.id)
    if isinstance(output, str) and output.startswith(f"{gateway.callback_url}/internal/files/"):
        return stored_files.mark(output.split("/internal/files/")[1][:26])
    if isinstance(output, list):
        if all(isinstance(item, str) for item in output):
            output = sorted(output, key=_number)  # uploads are listed as they were completed
        return [stored(gateway, job, item, f"out-{number}") for number, item in enumerate(output)]
    if isinstance(output, dict):
        return {key: stored(gateway, job, value, str(key)) for key, value in output.items()}
    return output


def _number(item: str) -> int:
    """Return the number in the name of an uploaded file; anything else keeps its place."""
    match = re.search(r"-(\d+)\.\w+$", item) if "/internal/files/" in item else None
    return int(match[1]) if match else 0


def make_version(session: Session, job: Job, output: Any) -> Any:
    """Return the output of a training: the version that it made of its destination, and the file of the weights."""
    marks = stored_files.marked(output)
    file = stored_files.find(session, marks[0]) if marks else None
    drawing = catalog.latest_version(session, *catalog.INFERENCE_MODEL)
    if file is None or drawing is None:
        return output
    file.purpose = "weights"
    document = catalog.without_weights(drawing.openapi_schema)
    version = catalog.add_trained(session, job, file, document, drawing.cog_version)
    return {"version": f"{version.owner}/{version.name}:{version.id}", "weights": stored_files.mark(file.id)}
