"""How long and how much a fetch may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DownloadLimits:
    """Times are in seconds.

    Attributes:
        address: to connect to one address of a host.
        connect: to find the host, connect and agree on TLS, all addresses together.
        read: without a single byte from the server.
        total: for all of a fetch, waiting for others who fetch the same among it.
        redirects: how many are followed.
        pages: how many pages that ask to confirm are followed.
        attempts: how often a fetch is tried before a server that is busy or breaks off is given up.
        backoff: before the second attempt; doubled for each after it.
        longest_wait: that a server may ask for by Retry-After.
        fresh: how long a file in the cache is used without asking whether it is still the newest.
        page_bytes: of a page or listing that are read.
    """

    address: float = 5.0
    connect: float = 15.0
    read: float = 30.0
    total: float = 1800.0
    redirects: int = 8
    pages: int = 3
    attempts: int = 5
    backoff: float = 0.5
    longest_wait: float = 60.0
    fresh: float = 600.0
    page_bytes: int = 8 * 1024**2
