"""Pages of a hundred, newest first, with links to their neighbours."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lora_service.gateway.database.tables import Job
from lora_service.gateway.problems import invalid

PAGE = 100


def read_cursor(cursor: str) -> dict[str, int]:
    """Return a cursor as arguments of :func:`jobs.page`.

    Raises:
        Problem: it is none of ours (422).
    """
    if not cursor:
        return {}
    match = re.fullmatch(r"([bn])(\d{1,18})", cursor)
    if not match:
        raise invalid("cursor", "must be one that next or previous of a page has")
    return {"before" if match[1] == "b" else "after": int(match[2])}


def page(rows: Sequence[Job], shown: list[dict[str, Any]], url: str, cursor: str, more: bool) -> dict[str, Any]:
    """Return a page.

    Args:
        rows, shown: the jobs, as rows and as the API shows them.
        url: the list's address.
        cursor: that of this page.
        more: whether others follow in the direction of the cursor.
    """
    backwards = cursor.startswith("n")
    older = rows and (more or backwards)
    newer = rows and ((bool(cursor) and not backwards) or (backwards and more))
    return {
        "previous": f"{url}?cursor=n{rows[0].seq}" if newer else None,
        "next": f"{url}?cursor=b{rows[-1].seq}" if older else None,
        "results": shown,
    }
