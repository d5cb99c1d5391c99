"""Callers of the API, and their rights."""

from __future__ import annotations

import hmac
import threading
import time
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request

from lora_service.errors import SettingError
from lora_service.gateway import views
from lora_service.gateway.database import accounts
from lora_service.gateway.database.tables import Job
from lora_service.gateway.gateway import Gateway
from lora_service.gateway.identifiers import token_hash
from lora_service.gateway.problems import Problem, not_found

LOCAL_USER = "local"
"""Whoever asks a gateway that needs no tokens."""
_GUESSES = 20
"""Unknown tokens from one address that are answered in a minute."""
_MINUTE = 60.0


@dataclass(frozen=True)
class Caller:
    """The user behind a request."""

    user: str
    scope: str

    def may(self, scope: str) -> bool:
        """Return True if the token's scope includes ``scope``."""
        return accounts.SCOPES.index(self.scope) >= accounts.SCOPES.index(scope)

    def check_owner(self, owner: str, what: str) -> None:
        """Refuse what is another user's, as if it were not there.

        Raises:
            Problem: it is (404).
        """
        if owner != self.user and not self.may("admin"):
            raise not_found(what)

    def check_job(self, row: Job | None, kind: str) -> Job:
        """Return a job that the caller may see.

        Raises:
            Problem: there is none, or it is another user's (404).
        """
        if row is None or row.kind != kind:
            raise not_found(kind)
        self.check_owner(row.owner, kind)
        return row


class RateLimit:
    """A bucket of requests for each name, which fills up again within a minute."""

    def __init__(self, per_minute: int) -> None:
        self._size = float(per_minute)
        self._buckets: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def take(self, name: str) -> float:
        """Take a request out of a bucket; returns 0.0, or the seconds until one is in it again."""
        now = time.monotonic()
        with self._lock:
            left, then = self._buckets.get(name, (self._size, now))
            left = min(self._size, left + (now - then) * self._size / _MINUTE)
            if left < 1:
                return (1 - left) * _MINUTE / self._size
            self._buckets[name] = (left - 1, now)
            if len(self._buckets) > 10_000:
                self._buckets = {key: at for key, at in self._buckets.items() if now - at[1] < _MINUTE}
            return 0.0


class Gatekeeper:
    """Knows tokens.

    Args:
        gateway: whose tokens.

    Raises:
        SettingError: ``API_TOKENS`` cannot be read.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._guesses = RateLimit(_GUESSES)
        self._requests = RateLimit(gateway.settings.rate_limit)
        self._fixed = dict(_fixed_tokens(gateway.settings.api_tokens.get_secret_value()))
        with gateway.database.write() as session:
            for user, _ in self._fixed.values():
                accounts.user(session, user)
            if not gateway.needs_tokens:
                accounts.user(session, LOCAL_USER)

    def caller(self, authorization: str, address: str) -> Caller:
        """Return who asks.

        Raises:
            Problem: no known token (401), or too many requests (429).
        """
        scheme, _, token = authorization.partition(" ")
        caller = self._known(token.strip()) if scheme.lower() in ("bearer", "token") and token else None
        if caller is None:
            if self._gateway.needs_tokens:
                # A known token is taken from any address: behind a proxy, those who guess share it with all others.
                if token and (seconds := self._guesses.take(address)) > 0:
                    raise _too_many(seconds)
                detail = "A token is needed: Authorization: Bearer …" if not token else "The token is not known."
                raise Problem(401, detail, {"WWW-Authenticate": "Bearer"})
            caller = Caller(LOCAL_USER, "admin")
        if (seconds := self._requests.take(caller.user)) > 0:
            raise _too_many(seconds)
        return caller

    def _known(self, token: str) -> Caller | None:
        hashed = token_hash(token)
        for fixed, (user, scope) in self._fixed.items():
            if hmac.compare_digest(fixed, hashed):
                return Caller(user, scope)
        with self._gateway.database.read() as session:
            owner = accounts.owner_of_token(session, token)
        return Caller(*owner) if owner else None


def _too_many(seconds: float) -> Problem:
    return Problem(429, f"Too many requests; try again in {seconds:.0f} s.", {"Retry-After": str(int(seconds) + 1)})


def _fixed_tokens(text: str) -> list[tuple[str, tuple[str, str]]]:
    tokens = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        user, _, rest = entry.partition(":")
        scope, _, token = rest.partition(":")
        if not user or scope not in accounts.SCOPES or len(token) < 16:
            raise SettingError("API_TOKENS", "…", "user:scope:token, comma-separated, tokens of at least 16 characters")
        tokens.append((token_hash(token), (user, scope)))
    return tokens


def gateway_of(request: Request) -> Gateway:
    """Return the gateway of a request."""
    gateway: Gateway = request.app.state.gateway
    return gateway


def caller_of(request: Request) -> Caller:
    """Return who sent a request, who may at least read."""
    keeper: Gatekeeper = request.app.state.gatekeeper
    address = request.client.host if request.client else ""
    return keeper.caller(request.headers.get("authorization", ""), address)


def runner_of(caller: Annotated[Caller, Depends(caller_of)]) -> Caller:
    """Return who sent a request that needs the scope ``run``."""
    return _with_scope(caller, "run")


def admin_of(caller: Annotated[Caller, Depends(caller_of)]) -> Caller:
    """Return who sent a request that needs the scope ``admin``."""
    return _with_scope(caller, "admin")


def _with_scope(caller: Caller, scope: str) -> Caller:
    if not caller.may(scope):
        raise Problem(403, f"The token's scope is {caller.scope}; this needs {scope}.")
    return caller


def links_of(request: Request) -> views.Links:
    """Return links for who sent a request: under ``PUBLIC_URL``, else under the address that they asked."""
    gateway = gateway_of(request)
    base = gateway.settings.public_url or f"{request.url.scheme}://{request.url.netloc}"
    return views.Links(base, gateway.signer)


def known_hosts(gateway: Gateway) -> set[str]:
    """Return the hosts that name this gateway where it needs no tokens; another one is a trick of a web page."""
    urls = (gateway.settings.public_url, gateway.settings.callback_url)
    named = {urlsplit(url).hostname for url in urls if url}
    return {"localhost", "127.0.0.1", "::1", gateway.host, *(name for name in named if name)}


GatewayOf = Annotated[Gateway, Depends(gateway_of)]
Reader = Annotated[Caller, Depends(caller_of)]
Runner = Annotated[Caller, Depends(runner_of)]
Admin = Annotated[Caller, Depends(admin_of)]
LinksOf = Annotated[views.Links, Depends(links_of)]
