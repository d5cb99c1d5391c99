"""Facts on LoRA files: read from their headers once, and kept with the record of the file."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lora_service.errors import LoraServiceError
from lora_service.gateway.database import stored_files
from lora_service.gateway.database.tables import StoredFile
from lora_service.gateway.gateway import Gateway
from lora_service.gateway.uploads import data_uri_content, store
from lora_service.lora.header_facts import HeaderFacts, read_facts

FACTS = "lora"
"""The key of a LoRA file's facts among its details."""
_LARGEST_THUMBNAIL = 512 * 1024
_PICTURES = ("image/jpeg", "image/png", "image/webp")


def facts_of(gateway: Gateway, file: StoredFile) -> dict[str, Any]:
    """Return the facts of a file's header, with the identifier of a stored file as ``thumbnail``; {} if it is no LoRA
    or the store has lost it.
    """
    kept = file.details.get(FACTS)
    if isinstance(kept, dict):
        return kept
    with tempfile.TemporaryDirectory(prefix="lora-gateway-") as folder:
        known: dict[str, Any] = {}
        try:
            facts = read_facts(gateway.blobs.copy(file.id, Path(folder) / file.name), file.name)
            known = asdict(facts) | {"thumbnail": _thumbnail(gateway, file, facts)}
        except FileNotFoundError:
            return {}
        except LoraServiceError:
            pass  # that it is none is kept too
    with gateway.database.write() as session:
        row = stored_files.find(session, file.id)
        if row is not None:
            row.details = row.details | {FACTS: known}
    return known


def _thumbnail(gateway: Gateway, file: StoredFile, facts: HeaderFacts) -> str | None:
    """Return the identifier of the thumbnail as a file of its own; None where the header has no picture."""
    if not facts.thumbnail or len(facts.thumbnail) > _LARGEST_THUMBNAIL:
        return None
    try:
        kind, chunks = data_uri_content(facts.thumbnail)
        if kind not in _PICTURES:
            return None
        row = store(gateway, chunks, owner=file.owner, purpose="thumbnail", name=f"{Path(file.name).stem}.jpg",
                    content_type=kind, job=file.job, expires_at=file.expires_at)  # fmt: skip
    except LoraServiceError:
        return None
    return row.id
