"""The account, the hardware, and the secret that webhooks are signed with."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from lora_service.gateway.api.access import GatewayOf, Reader, Runner
from lora_service.gateway.database import accounts

router = APIRouter(prefix="/v1", tags=["account"])


@router.get("/account")
def get_account(caller: Reader) -> dict[str, Any]:
    """Return whose token it is."""
    return {"type": "user", "username": caller.user, "name": caller.user, "github_url": None}


@router.get("/hardware")
def list_hardware(gateway: GatewayOf, caller: Reader) -> list[dict[str, str]]:
    """Return what models can run on."""
    devices = gateway.settings.gateway_devices
    return [{"sku": "local", "name": f"GPU {', '.join(devices)}" if devices else "This machine"}]


@router.get("/webhooks/default/secret")
def get_webhook_secret(gateway: GatewayOf, caller: Runner) -> dict[str, str]:
    """Return the key of the signatures of the caller's webhooks."""
    with gateway.database.write() as session:
        return {"key": accounts.user(session, caller.user).webhook_secret}


@router.get("/collections")
def list_collections(caller: Reader) -> dict[str, Any]:
    """Return no collections: there are none here."""
    return {"previous": None, "next": None, "results": []}
