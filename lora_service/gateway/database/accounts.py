"""Users and their tokens."""

from __future__ import annotations

import re
import time

from sqlalchemy import select
from sqlalchemy.orm import Session

from lora_service.errors import InputError
from lora_service.gateway.database.tables import Token, User
from lora_service.gateway.identifiers import new_token, new_webhook_secret, token_hash

SCOPES = ("read", "run", "admin")
"""The rights of a token; each includes those before it."""
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"


def user(session: Session, name: str) -> User:
    """Return a user, who is made if there is none of that name."""
    row = session.get(User, name)
    if row is None:
        row = User(name=name, webhook_secret=new_webhook_secret(), created_at=time.time(), served=0.0)
        session.add(row)
        session.flush()
    return row


def add_token(session: Session, name: str, scope: str, token: str = "") -> str:
    """Give a user a token; returns it, for the only time.

    Raises:
        InputError: the name or scope cannot be used.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise InputError("user", name, "letters, digits, '.', '_' and '-', at most 63")
    if scope not in SCOPES:
        raise InputError("scope", scope, f"one of {', '.join(SCOPES)}")
    user(session, name)
    token = token or new_token()
    if session.get(Token, token_hash(token)) is None:
        session.add(Token(hash=token_hash(token), user=name, scope=scope, created_at=time.time()))
    return token


def owner_of_token(session: Session, token: str) -> tuple[str, str] | None:
    """Return the user and the scope of a token, None for an unknown one."""
    row = session.get(Token, token_hash(token))
    return (row.user, row.scope) if row else None


def remove_tokens(session: Session, name: str) -> int:
    """Remove all tokens of a user; returns how many there were."""
    tokens = session.scalars(select(Token).where(Token.user == name)).all()
    for token in tokens:
        session.delete(token)
    return len(tokens)
