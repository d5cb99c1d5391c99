"""Random names, signatures of links and of webhooks, hashes of tokens."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

ID_PATTERN = r"[a-z2-7]{26}"
"""Identifiers of jobs and files: 128 random bits."""


def new_id() -> str:
    """Return a new identifier."""
    return base64.b32encode(secrets.token_bytes(16)).decode().rstrip("=").lower()


def is_id(text: str) -> bool:
    """Return True if ``text`` has the form of an identifier."""
    return re.fullmatch(ID_PATTERN, text) is not None


def new_token() -> str:
    """Return a new token for a user."""
    return f"ls_{secrets.token_urlsafe(32)}"


def token_hash(token: str) -> str:
    """Return the hash by which a token is known; one of 256 random bits needs no salt and no slow hash."""
    return hashlib.sha256(token.encode()).hexdigest()


def new_webhook_secret() -> str:
    """Return a new key for the signatures of webhooks, in the form that Replicate's clients read."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()


def webhook_signature(secret: str, identifier: str, timestamp: int, body: str) -> str:
    """Return the ``webhook-signature`` header of a delivery (standardwebhooks.com, version 1)."""
    key = base64.b64decode(secret.partition("_")[2])
    digest = hmac.new(key, f"{identifier}.{timestamp}.{body}".encode(), hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def load_key(folder: Path) -> bytes:
    """Return the key of the gateway's own signatures, made at the first start in ``folder``."""
    path = folder / "key"
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        part = folder / f".key-{secrets.token_hex(4)}"
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(32))
            file.flush()
            os.fsync(descriptor)
        part.rename(path)
    return path.read_bytes()


@dataclass(frozen=True)
class Signer:
    """Signs what a link may open; links of one purpose are worth nothing for another.

    Args:
        key: the gateway's secret.
        lifetime: seconds for which a link is valid.
    """

    key: bytes
    lifetime: int = 3600

    def sign(self, *parts: str) -> str:
        """Return the signature of the parts together."""
        message = "\0".join(parts).encode()
        return hmac.new(self.key, message, hashlib.sha256).hexdigest()[:40]

    def verify(self, signature: str, *parts: str) -> bool:
        """Return True if ``signature`` is that of the parts."""
        return hmac.compare_digest(signature.encode(), self.sign(*parts).encode())

    def query(self, purpose: str, identifier: str, lifetime: int | None = None) -> str:
        """Return the query of a link that expires, after its own lifetime in seconds where it has one."""
        expires = str(int(time.time()) + (self.lifetime if lifetime is None else lifetime))
        return urlencode({"expires": expires, "signature": self.sign(purpose, identifier, expires)})

    def allows(self, purpose: str, identifier: str, expires: str, signature: str) -> bool:
        """Return True if a link's query is one that was given out for it and has not expired."""
        if not self.verify(signature, purpose, identifier, expires):
            return False
        return int(expires) >= time.time()
