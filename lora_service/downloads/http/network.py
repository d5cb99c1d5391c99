"""Connections that are pinned to the addresses that were checked.

urllib3 does HTTP and TLS; only the socket is opened in another way: the name is resolved once, every address is
checked, and the socket is connected to a checked address and never to the name. A name that resolves to another
address between check and connection (DNS rebinding) therefore gains nothing. TLS still proves the name.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field

import certifi
from urllib3.connection import HTTPConnection, HTTPSConnection

from lora_service.downloads.http.addresses import AddressPolicy
from lora_service.downloads.parsed_url import ParsedUrl
from lora_service.errors import LinkError, UnreachableError

Resolver = Callable[[str, int], list[tuple[str, int]]]
"""Host and port of a link -> the addresses and ports to connect to, best first; OSError when there is none."""
Connector = Callable[[tuple[str, int], float], socket.socket]
"""Address and port, and a time-out in seconds -> a connected socket."""


def resolve_name(host: str, port: int) -> list[tuple[str, int]]:
    """Look up a host's addresses with the system's resolver."""
    answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(str(address[0]), int(address[1])) for *_, address in answers]


def connect(address: tuple[str, int], timeout: float) -> socket.socket:
    """Open a TCP connection to an address; ``timeout`` is in seconds."""
    return socket.create_connection(address, timeout)


def trusted_certificates() -> ssl.SSLContext:
    """Return the TLS context that trusts the authorities in ``SSL_CERT_FILE`` where it is set, else certifi's."""
    return ssl.create_default_context(cafile=os.environ.get("SSL_CERT_FILE") or certifi.where())


@dataclass(frozen=True)
class Network:
    """The way from names to connections; tests put their own resolver, connector and certificates here."""

    policy: AddressPolicy = field(default_factory=AddressPolicy)
    resolver: Resolver = resolve_name
    connector: Connector = connect
    tls: ssl.SSLContext = field(default_factory=trusted_certificates)

    def open(self, link: ParsedUrl, timeout: float) -> HTTPConnection:
        """Return a connection for a link, not connected yet: its ``connect()`` checks, and only then connects.

        Args:
            link: the link to connect to.
            timeout: seconds for each address.

        Raises:
            ForbiddenAddressError: the port is forbidden; ``connect()`` raises it for an address.
        """
        self.policy.check_port(link.host, link.port)
        if link.scheme == "https":
            return _PinnedHTTPS(link, self, timeout)
        return _PinnedHTTP(link, self, timeout)

    def socket_to(self, host: str, port: int, timeout: float) -> socket.socket:
        """Return a socket to the first address of a host that answers, after all of them were checked.

        Raises:
            ForbiddenAddressError: one of the addresses is forbidden.
            LinkError: the name is unknown.
            UnreachableError: no address answers.
        """
        try:
            addresses = self.resolver(host, port)
        except (OSError, UnicodeError) as error:
            raise _lookup_error(host, error) from error
        self.policy.check_addresses(host, port, addresses)
        failure: OSError | None = None
        for address in addresses:
            try:
                return self.connector(address, timeout)
            except OSError as error:
                failure = error
        raise UnreachableError(f"The host {host!r} does not answer on port {port}; try again later.") from failure


def _lookup_error(host: str, error: Exception) -> LinkError:
    if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
        return UnreachableError(f"The host {host!r} cannot be looked up now; try again later.", code="dns_failure")
    return LinkError(f"The host {host!r} is not known; check the link's spelling.", code="unknown_host")


class _PinnedHTTP(HTTPConnection):
    def __init__(self, link: ParsedUrl, network: Network, timeout: float) -> None:
        super().__init__(link.host, link.port, timeout=timeout)
        self._network, self._address_timeout = network, timeout

    def _new_conn(self) -> socket.socket:
        return self._network.socket_to(self.host, self.port, self._address_timeout)


class _PinnedHTTPS(HTTPSConnection):
    def __init__(self, link: ParsedUrl, network: Network, timeout: float) -> None:
        super().__init__(link.host, link.port, timeout=timeout, ssl_context=network.tls)
        self._network, self._address_timeout = network, timeout

    def _new_conn(self) -> socket.socket:
        return self._network.socket_to(self.host, self.port, self._address_timeout)
