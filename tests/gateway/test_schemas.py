"""The inputs in the documents of versions."""

from __future__ import annotations

from lora_service.gateway.schemas import file_inputs, secret_inputs

SECRET = {"type": "string", "format": "password", "writeOnly": True, "x-cog-secret": True}


def test_files_and_secrets_are_found_where_they_are_optional_too() -> None:
    inputs = {
        "prompt": {"type": "string"},
        "token": SECRET,
        "other": {"anyOf": [SECRET, {"type": "null"}]},
        "image": {"type": "string", "format": "uri"},
        "images": {"type": "array", "items": {"type": "string", "format": "uri"}},
    }
    document = {"components": {"schemas": {"Input": {"properties": inputs}}}}
    assert secret_inputs(document) == ["token", "other"]
    assert file_inputs(document) == ["image", "images"]
    assert secret_inputs({}) == []
