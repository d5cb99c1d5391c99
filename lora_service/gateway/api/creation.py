"""From a request to a job in the queue."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy.orm import Session

from lora_service.downloads.http.addresses import AddressPolicy
from lora_service.downloads.parsed_url import ParsedUrl
from lora_service.errors import LoraServiceError
from lora_service.gateway import views
from lora_service.gateway.api.access import Caller
from lora_service.gateway.api.requests import JobBody
from lora_service.gateway.database import accounts, catalog, jobs, stored_files
from lora_service.gateway.database.tables import Job, Version
from lora_service.gateway.gateway import QUEUE, Gateway
from lora_service.gateway.identifiers import ID_PATTERN, new_id
from lora_service.gateway.problems import Problem, invalid, not_found
from lora_service.gateway.schemas import file_inputs, input_problems
from lora_service.gateway.uploads import store_data_uri

_MAX_INPUT = 200_000  # characters of an input's texts, once its files are stored apart
_BUSY_SECONDS = 10


@dataclass(frozen=True)
class Target:
    """The version that a job runs."""

    kind: str
    version: Version
    model: str
    destination: str | None = None
    deployment: str | None = None


def find_version(session: Session, caller: Caller, reference: str) -> Version:
    """Return the version of an id, ``owner/name:id`` or ``owner/name``, which the caller may run.

    Raises:
        Problem: there is none (422, as Replicate's API answers).
    """
    place, _, identifier = reference.rpartition(":") if ":" in reference else ("", "", reference)
    if "/" in identifier:
        owner, _, name = identifier.partition("/")
        version = catalog.latest_version(session, owner, name)
    else:
        version = session.get(Version, identifier)
    if version is None or (place and place != f"{version.owner}/{version.name}"):
        raise invalid("version", "there is none of that id, or the token has no access to it")
    check_model(session, caller, version.owner, version.name)
    return version


def check_model(session: Session, caller: Caller, owner: str, name: str) -> None:
    """Refuse a model that the caller may not see, as if it were not there.

    Raises:
        Problem: it is (404).
    """
    model = catalog.model(session, owner, name)
    if model is None or (model.visibility != "public" and model.owner != caller.user and not caller.may("admin")):
        raise not_found("model")


def create(
    gateway: Gateway, caller: Caller, links: views.Links, target: Target, body: JobBody, cancel_after: float | None
) -> Job:
    """Put a job into the queue; it is on disk when this returns.

    Raises:
        Problem: an input cannot be used (422), or the queue is full (429).
    """
    if body.priority > 0 and not caller.may("admin"):
        raise Problem(403, "A priority above 0 needs a token of the scope admin.")
    webhook, events = body.receiver()
    check_webhook(gateway, webhook)
    with gateway.database.read() as session:
        _check_queue(gateway, session, caller)
    inputs = checked_inputs(gateway, caller, links, target.version.openapi_schema, body.input)
    now = time.time()
    job = Job(
        id=new_id(), kind=target.kind, owner=caller.user, engine=target.version.engine, model=target.model,
        version=target.version.id, deployment=target.deployment, destination=target.destination, input=inputs,
        output=None, logs="", error=None, metrics={}, status="starting", priority=body.priority, webhook=webhook,
        webhook_events=events, created_at=now, cancel_at=None if cancel_after is None else now + cancel_after,
        loras=_loras(target.version, inputs),
    )  # fmt: skip
    with gateway.database.write() as session:
        accounts.user(session, caller.user)
        _check_queue(gateway, session, caller)
        session.add(job)
    gateway.hub.notify(QUEUE)
    return job


def _loras(version: Version, inputs: Mapping[str, Any]) -> str:
    """Return the same text for jobs that draw with the same LoRAs."""
    names = [version.weights, inputs.get("replicate_weights"), inputs.get("lora_urls")]
    named = json.dumps(names)
    return hashlib.sha256(named.encode()).hexdigest()[:16] if any(names) else ""


def checked_inputs(
    gateway: Gateway, caller: Caller, links: views.Links, document: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return an input as it is kept: with marks of stored files in place of data URIs and links to this gateway.

    Raises:
        Problem: an input cannot be used (422), or they are too long (413).
    """
    with gateway.database.read() as session:
        inputs = {name: own_files(session, gateway, caller, links, value) for name, value in given.items()}
    _check_inputs(document, inputs)
    inputs = {name: _stored(gateway, caller, name, value) for name, value in inputs.items()}
    _check_size(inputs)
    return inputs


def _check_queue(gateway: Gateway, session: Session, caller: Caller) -> None:
    settings = gateway.settings
    if jobs.count_open(session, caller.user) >= settings.max_queue_per_user or (
        jobs.count_open(session) >= settings.max_queue
    ):
        raise Problem(429, "The queue is full; try again later.", {"Retry-After": str(_BUSY_SECONDS)})


def check_webhook(gateway: Gateway, url: str | None) -> None:
    """Refuse a webhook's address that could never be sent to: no http(s), a strange port, a private address.

    Raises:
        Problem: it is one (422).
    """
    if not url:
        return
    try:
        link = ParsedUrl.parse(url)
        policy = AddressPolicy(gateway.service.allow_private_addresses)
        policy.check_port(link.host, link.port)
        if _is_address(link.host):
            policy.check_addresses(link.host, link.port, [(link.host, link.port)])
    except LoraServiceError as error:
        raise invalid("webhook", str(error)) from error


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def own_files(session: Session, gateway: Gateway, caller: Caller, links: views.Links, value: Any) -> Any:
    """Return an input with marks in place of links to files of this gateway that the caller may open.

    Raises:
        Problem: one is not there, or not theirs (422).
    """
    if isinstance(value, list):
        return [own_files(session, gateway, caller, links, item) for item in value]
    if isinstance(value, dict):
        return {key: own_files(session, gateway, caller, links, item) for key, item in value.items()}
    if not isinstance(value, str):
        return value
    if stored_files.marked(value):
        raise invalid("input", "must not have the gateway's own marks of files")
    bases = {links.base, gateway.links.base, gateway.callback_url}
    hosts = "|".join(re.escape(urlsplit(base).netloc) for base in bases)
    pattern = re.compile(
        rf"https?://(?:{hosts})(?:/v1/files/(?P<api>{ID_PATTERN})(?![/\w])|/files/(?P<link>{ID_PATTERN})/[^\s|?\"]*"
        rf"\?expires=(?P<expires>\d+)&signature=(?P<signature>[0-9a-f]+))"
    )

    def replace(match: re.Match[str]) -> str:
        identifier = match["api"] or match["link"]
        file = stored_files.find(session, identifier)
        is_open = match["link"] and gateway.signer.allows(
            views.DOWNLOAD, identifier, match["expires"], match["signature"]
        )
        if file is None or not (is_open or file.owner == caller.user or caller.may("admin")):
            raise invalid("input", f"the file {identifier} does not exist, or the link has expired")
        return stored_files.mark(identifier)

    return pattern.sub(replace, value)


def _stored(gateway: Gateway, caller: Caller, name: str, value: Any) -> Any:
    """Return an input with stored files in place of data URIs."""
    if isinstance(value, list):
        return [_stored(gateway, caller, name, item) for item in value]
    if isinstance(value, str) and value.startswith("data:"):
        try:
            return store_data_uri(gateway, value, owner=caller.user, purpose="input", stem=name)
        except LoraServiceError as error:
            raise invalid(name, str(error)) from error
    return value


def _check_inputs(document: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
    """Check an input against a version's document.

    Raises:
        Problem: all that is wrong with it (422).
    """
    problems = input_problems(document, inputs)
    if problems:
        detail = "\n".join(f"- input.{name}: {text}" for name, text in problems.items())
        raise Problem(422, detail, fields={f"input.{name}": text for name, text in problems.items()})
    for name in file_inputs(document):
        value = inputs.get(name)
        texts = [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]
        if not all(text.startswith(("http://", "https://", "data:", "gateway-file:")) for text in texts):
            raise invalid(f"input.{name}", "must be an uploaded file, a data URI or an http(s) link")


def _check_size(value: Any) -> None:
    if len(str(value)) > _MAX_INPUT:
        raise Problem(413, f"The texts of an input may have {_MAX_INPUT} characters at most.")
