"""The addresses and ports that a server may connect to when it fetches what strangers paste.

The tables name the ranges themselves instead of asking ``ipaddress`` alone, whose answers differ between
Python's patch releases. Sources: the IANA special-purpose registries for IPv4 and IPv6 (RFC 6890 and after).
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from lora_service.errors import ForbiddenAddressError

WEB_PORTS = frozenset({80, 443, 8080, 8443})

_IPV4_FORBIDDEN = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",  # carrier-grade NAT; a cloud's metadata at 100.100.100.200
            "127.0.0.0/8",
            "168.63.129.16/32",  # a cloud's metadata at an address that is otherwise public
            "169.254.0.0/16",  # link-local; most clouds' metadata at 169.254.169.254
            "172.16.0.0/12",
            "192.0.0.0/24",  # a cloud's metadata at 192.0.0.192
            "192.0.2.0/24",
            "192.31.196.0/24",
            "192.52.193.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "192.175.48.0/24",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",
            "240.0.0.0/4",
        ),
    )
)
_IPV6_GLOBAL = IPv6Network("2000::/3")
"""Only here are global unicast addresses; loopback, private, link-local, multicast, IPv4-mapped and NAT64 are not."""
_IPV6_FORBIDDEN = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # protocols' own, Teredo with an IPv4 address inside among them
            "2001:db8::/32",
            "2002::/16",  # 6to4: an IPv4 address inside
            "2620:4f:8000::/48",
            "3fff::/20",
        ),
    )
)


def is_public(address: str) -> bool:
    """Return whether an address belongs to the public internet; unreadable ones do not."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    return _is_public_v4(parsed) if isinstance(parsed, IPv4Address) else _is_public_v6(parsed)


def _is_public_v4(address: IPv4Address) -> bool:
    return address.is_global and not any(address in network for network in _IPV4_FORBIDDEN)


def _is_public_v6(address: IPv6Address) -> bool:
    return (
        address.scope_id is None
        and address in _IPV6_GLOBAL
        and address.is_global
        and not any(address in network for network in _IPV6_FORBIDDEN)
    )


@dataclass(frozen=True)
class AddressPolicy:
    """The rules for ports and addresses.

    Attributes:
        allowed: exceptions, as ``host:port`` or ``host:*``, that may be connected to although private; a host is a
            name as the link has it, or an address as it was resolved.
    """

    allowed: tuple[str, ...] = ()

    def check_port(self, host: str, port: int) -> None:
        """Refuse a port on which no web server is expected.

        Raises:
            ForbiddenAddressError: the port is neither common for the web nor listed.
        """
        if port not in WEB_PORTS and not self._is_allowed(host, port):
            ports = ", ".join(map(str, sorted(WEB_PORTS)))
            raise ForbiddenAddressError(
                f"The link leads to port {port} of {host!r}, but only the ports {ports} are fetched from, "
                "and those that ALLOW_PRIVATE_ADDRESSES lists.",
                code="forbidden_port",
            )

    def check_addresses(self, host: str, port: int, addresses: list[tuple[str, int]]) -> None:
        """Refuse a host when any address it resolved to is not public.

        Args:
            host: the name in the link.
            port: the port in the link.
            addresses: the addresses and ports that the name resolved to.

        Raises:
            ForbiddenAddressError: one of them is private and not listed.
        """
        if self._is_allowed(host, port):
            return
        for address, actual_port in addresses:
            if not is_public(address) and not self._is_allowed(address, actual_port):
                # Without the address: strangers must not learn what names mean inside a network.
                raise ForbiddenAddressError(
                    f"The link leads to {host!r}, which is not on the public internet; "
                    f"paste a public link, or have {_bracketed(host)}:{port} listed in ALLOW_PRIVATE_ADDRESSES."
                )

    def _is_allowed(self, host: str, port: int) -> bool:
        host = _bracketed(host)
        return any(entry.lower() in (f"{host}:{port}", f"{host}:*") for entry in self.allowed)


def _bracketed(host: str) -> str:
    """Return a host as it stands before a port: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host
