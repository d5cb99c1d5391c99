"""What can go wrong with a link, below :class:`~lora_service.errors.LinkError`.

LinkError                 a link cannot be used or fetched
├── ForbiddenAddressError it leads where the service may not go
└── UnreachableError      the server does not answer as it should now, and may do so later
FetchCancelled            the caller asked to stop: nobody's mistake, so no LoraServiceError
"""

from __future__ import annotations

from lora_service.errors import LinkError


class ForbiddenAddressError(LinkError):
    """A link, or a redirect of it, leads to an address or port that the service does not fetch from."""


class UnreachableError(LinkError):
    """A server could not be reached, broke off, or was too slow or too busy; asking again later may help.

    Args:
        message: one sentence.
        retry: whether asking again at once may help.
        wait: seconds that the server asks to wait first, or None.
    """

    def __init__(self, message: str, *, retry: bool = True, wait: float | None = None) -> None:
        super().__init__(message)
        self.retry = retry
        self.wait = wait


class FetchCancelled(Exception):
    """The caller's ``should_stop`` became true while a fetch was under way."""
