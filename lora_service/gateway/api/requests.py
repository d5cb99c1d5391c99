"""The bodies of requests; what clients send besides is ignored, as Replicate's API does."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
Name = Annotated[str, Field(pattern=_NAME)]
Event = Literal["start", "output", "logs", "completed"]
_MAX_CANCEL_SECONDS = 7 * 24 * 3600


class JobBody(BaseModel):
    """The fields that predictions and trainings have in common."""

    input: dict[str, Any] = Field(default_factory=dict, description="The model's inputs.")
    webhook: str | None = Field(default=None, max_length=4000, description="Receives the job at its events.")
    webhook_completed: str | None = Field(default=None, max_length=4000, description="The same for its end alone.")
    webhook_events_filter: list[Event] | None = Field(default=None, description="Events that are sent; none: all.")
    priority: int = Field(default=0, ge=-10, le=10, description="Higher ones come first; above 0 for admins alone.")

    @field_validator("input")
    @classmethod
    def _whole_characters(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Refuse what neither a database nor a webhook could hold."""
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError("has half of a character (a lone surrogate)") from error
        return value

    def receiver(self) -> tuple[str | None, list[str]]:
        """Return the webhook and its events."""
        if self.webhook:
            return self.webhook, list(dict.fromkeys(self.webhook_events_filter or []))
        return (self.webhook_completed, ["completed"]) if self.webhook_completed else (None, [])


class PredictionBody(JobBody):
    """A prediction of a model or deployment that the path names."""

    stream: bool | None = Field(default=None, description="Accepted; every prediction has a stream.")


class VersionPredictionBody(PredictionBody):
    """A prediction of a version."""

    version: str = Field(max_length=300, description="An id, owner/name:id or owner/name.")


class TrainingBody(JobBody):
    """A training."""

    destination: str = Field(description="owner/name of the model that the result becomes a version of.")

    @field_validator("destination")
    @classmethod
    def _owner_and_name(cls, value: str) -> str:
        parts = value.split("/")
        if len(parts) != 2 or not all(re.match(_NAME, part) for part in parts):
            raise ValueError("must be owner/name")
        return value


class ModelBody(BaseModel):
    """A new model."""

    owner: Name
    name: Name
    visibility: Literal["public", "private"] = "private"
    hardware: str = ""
    description: str | None = Field(default=None, max_length=2000)
    github_url: str | None = Field(default=None, max_length=2000)
    paper_url: str | None = Field(default=None, max_length=2000)
    license_url: str | None = Field(default=None, max_length=2000)
    cover_image_url: str | None = Field(default=None, max_length=2000)


class DeploymentChange(BaseModel):
    """A change of a deployment."""

    version: str | None = None
    hardware: str | None = Field(default=None, max_length=100)
    min_instances: int | None = Field(default=None, ge=0, le=1000)
    max_instances: int | None = Field(default=None, ge=0, le=1000)


class DeploymentBody(BaseModel):
    """A new deployment."""

    name: Name
    model: str
    version: str
    hardware: str = Field(default="local", max_length=100)
    min_instances: int = Field(default=0, ge=0, le=1000)
    max_instances: int = Field(default=1, ge=0, le=1000)


def wait_seconds(prefer: str) -> float:
    """Return the seconds of a ``Prefer: wait`` header: 60 at most, 0.0 without one."""
    match = re.search(r"(?:^|[,;\s])wait(?:=(\d+))?(?:$|[,;\s])", prefer)
    if not match:
        return 0.0
    return float(min(60, max(1, int(match[1][:6])))) if match[1] else 60.0


def cancel_seconds(text: str) -> float:
    """Return the seconds of a ``Cancel-After`` header, like ``90``, ``90s`` or ``1h30m``.

    Raises:
        ValueError: it is none, or less than 5 seconds.
    """
    match = re.fullmatch(r"(?:(\d{1,4})h)?(?:(\d{1,6})m)?(?:(\d{1,7})s?)?", text.strip())
    if not match or not any(match.groups()):
        raise ValueError("a time like 90, 90s, 5m or 1h30m")
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    total = hours * 3600 + minutes * 60 + seconds
    if not 5 <= total <= _MAX_CANCEL_SECONDS:
        raise ValueError("between 5 seconds and 7 days")
    return float(total)
