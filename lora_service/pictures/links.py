"""The input ``instance_data_urls``."""

from __future__ import annotations

import json

from lora_service.errors import InputError


def split_links(text: str) -> list[str]:
    """The links in ``text``: a JSON list, or one per line, or split by ``|``.

    Raises:
        InputError: ``text`` begins like a JSON list and is none of strings.
    """
    text = text.strip()
    if not text.startswith("["):
        return [link.strip() for line in text.splitlines() for link in line.split("|") if link.strip()]
    try:
        links = json.loads(text)
    except ValueError as error:
        raise InputError("instance_data_urls", text, f"a JSON list of links ({error})") from error
    if not all(isinstance(link, str) for link in links):
        raise InputError("instance_data_urls", text, "a JSON list of strings")
    return [link.strip() for link in links if link.strip()]
