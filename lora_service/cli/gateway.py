"""The commands of the gateway: ``up`` and ``token``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import click

from lora_service.models.registry import locate
from lora_service.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from lora_service.gateway.engine.jobs import EngineKind


@click.command("up")
@click.option("--host", default="127.0.0.1", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=int, default=8000, help="Port; 0 for any that is free.  [default: 8000]")
@click.option("--predict-url", metavar="URL", default="", help="A Cog server elsewhere that draws.")
@click.option("--train-url", metavar="URL", default="", help="A Cog server elsewhere that trains.")
@click.option(
    "--engine", type=click.Choice(["local", "ray"]), default="local",
    help="What runs the jobs: this machine, or a Ray cluster.  [default: local]",
)  # fmt: skip
@click.option("--address", default="", help="The Ray cluster, as ray.init takes it.  [default: RAY_ADDRESS]")
def up_command(
    host: str, port: int, predict_url: str, train_url: str, engine: Literal["local", "ray"], address: str
) -> None:
    """Serve Replicate's HTTP API v1, with a queue that outlives restarts, in front of both servers.

    Replicate's clients work unchanged with REPLICATE_BASE_URL set to the address. The models are local/lora, which
    draws, and local/lora-training, which teaches; Cog's servers are started when they are needed. /docs describes the
    API.
    """
    from lora_service.gateway.http_server import up

    if engine == "ray" and (predict_url or train_url):
        raise click.UsageError("--predict-url and --train-url name servers that no Ray cluster has; leave them out.")
    if address and engine != "ray":
        raise click.UsageError("--address names a Ray cluster, which --engine ray uses.")
    settings = Settings.from_environment()
    locate(settings.base_model, settings.model_cache)  # refuse what can be no base model here, not in every job
    urls: dict[EngineKind, str] = {"predict": predict_url, "train": train_url}
    sys.exit(up(host, port, urls, engine=engine, ray_address=address, ready=click.echo))


@click.group("token")
def token_group() -> None:
    """Make or remove the tokens of the gateway's users."""


@token_group.command("add")
@click.argument("user")
@click.option("--scope", default="run", help="read, run or admin.  [default: run]")
def add_command(user: str, scope: str) -> None:
    """Make a token for USER and show it, for the only time."""
    from lora_service.gateway.database import accounts

    with _database() as session:
        token = accounts.add_token(session, user, scope)
    click.echo(token)


@token_group.command("remove")
@click.argument("user")
def remove_command(user: str) -> None:
    """Remove all tokens of USER; their jobs and models stay."""
    from lora_service.gateway.database import accounts

    with _database() as session:
        count = accounts.remove_tokens(session, user)
    click.echo(f"{count} removed")


@contextmanager
def _database() -> Iterator[Session]:
    """Yield a session of the gateway's database, which may be in use by a gateway."""
    from lora_service.gateway.database.connection import Database
    from lora_service.gateway.settings import GatewaySettings

    database = Database(GatewaySettings.from_environment().database)
    try:
        with database.write() as session:
            yield session
    finally:
        database.close()
