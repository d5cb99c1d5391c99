"""The addresses and ports that may be connected to."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_service.downloads.http.addresses import AddressPolicy, is_public
from lora_service.errors import ForbiddenAddressError
from tests.errors import raises

PRIVATE = {
    "0.0.0.0": "this network",
    "10.1.2.3": "private",
    "100.64.0.1": "carrier-grade NAT",
    "100.100.100.200": "metadata",
    "127.0.0.1": "loopback",
    "127.255.255.254": "loopback",
    "168.63.129.16": "metadata",
    "169.254.1.1": "link-local",
    "169.254.169.254": "metadata",
    "172.16.0.1": "private",
    "172.31.255.255": "private",
    "192.0.0.192": "metadata",
    "192.0.2.1": "documentation",
    "192.88.99.1": "6to4 relay",
    "192.168.0.1": "private",
    "198.18.0.1": "benchmarks",
    "198.51.100.1": "documentation",
    "203.0.113.1": "documentation",
    "224.0.0.1": "multicast",
    "239.255.255.255": "multicast",
    "240.0.0.1": "reserved",
    "255.255.255.255": "broadcast",
    "::": "unspecified",
    "::1": "loopback",
    "::7f00:1": "IPv4-compatible",
    "::ffff:127.0.0.1": "IPv4-mapped",
    "::ffff:8.8.8.8": "IPv4-mapped",
    "64:ff9b::7f00:1": "NAT64",
    "64:ff9b::808:808": "NAT64",
    "64:ff9b:1::a00:1": "local NAT64",
    "100::1": "discard",
    "2001::1": "Teredo",
    "2001:db8::1": "documentation",
    "2002:7f00:1::": "6to4",
    "3fff::1": "documentation",
    "5f00::1": "segment routing",
    "fc00::1": "unique local",
    "fd00:ec2::254": "metadata",
    "fe80::1": "link-local",
    "fe80::1%eth0": "link-local",
    "fec0::1": "site-local",
    "ff02::1": "multicast",
    "2606:4700::1111%eth0": "scoped",
    "not an address": "unreadable",
    "0x7f.1": "unreadable",
}
PUBLIC = ("8.8.8.8", "1.1.1.1", "93.184.216.34", "172.32.0.1", "2606:4700::1111", "2a00:1450:4001::200e")


@pytest.mark.parametrize("address", PRIVATE, ids=[f"{address} {kind}" for address, kind in PRIVATE.items()])
@pytest.mark.attack("spellings of addresses (G11)")
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_passes(address: str) -> None:
    assert is_public(address)


@given(st.ip_addresses())
@pytest.mark.attack("spellings of addresses (G11)", count=100)
def test_nothing_passes_that_python_itself_holds_for_special(address: IPv4Address | IPv6Address) -> None:
    special = (
        address.is_private
        or address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_reserved
        or address.is_unspecified
    )
    assert not (special and is_public(str(address)))


@given(st.ip_addresses(v=4))
@pytest.mark.attack("spellings of addresses (G11)", count=100)
def test_no_ipv4_address_passes_in_a_wrapping_of_ipv6(address: IPv4Address) -> None:
    for wrapped in (f"::ffff:{address}", f"::{address}", f"64:ff9b::{address}"):
        assert not is_public(str(ip_address(wrapped)))


@pytest.mark.parametrize(
    ("allowed", "host", "port", "address"),
    [
        ("files.local:9000", "files.local", 9000, "10.0.0.5"),
        ("files.local:*", "files.local", 1234, "10.0.0.5"),
        ("10.0.0.5:9000", "files.local", 9000, "10.0.0.5"),
        ("[::1]:9000", "::1", 9000, "::1"),
    ],
)
def test_what_is_listed_may_be_private(allowed: str, host: str, port: int, address: str) -> None:
    AddressPolicy((allowed,)).check_addresses(host, port, [(address, port)])


@pytest.mark.parametrize(
    ("allowed", "host", "port", "address"),
    [
        ("files.local:9000", "files.local", 9001, "10.0.0.5"),
        ("files.local:9000", "other.local", 9000, "10.0.0.5"),
        ("files.local:*", "xfiles.local", 9000, "10.0.0.5"),
        ("files.local", "files.local", 9000, "10.0.0.5"),
        ("*:*", "files.local", 9000, "10.0.0.5"),
        ("10.0.0.5:9000", "files.local", 9000, "10.0.0.6"),
    ],
)
def test_what_is_not_listed_exactly_may_not(allowed: str, host: str, port: int, address: str) -> None:
    with raises(ForbiddenAddressError, code="forbidden_address"):
        AddressPolicy((allowed,)).check_addresses(host, port, [(address, port)])


@pytest.mark.parametrize("port", [22, 25, 6379, 11211, 0])
@pytest.mark.attack("spellings of addresses (G11)")
def test_ports_of_other_services_are_refused_unless_listed(port: int) -> None:
    with raises(ForbiddenAddressError, code="forbidden_port") as caught:
        AddressPolicy().check_port("example.org", port)
    assert f"port {port} " in str(caught.value)
    assert "80, 443, 8080, 8443" in str(caught.value)
    AddressPolicy((f"example.org:{port}",)).check_port("example.org", port)


@pytest.mark.attack("spellings of addresses (G11)")
def test_a_refusal_does_not_tell_the_address_behind_a_name_and_spells_ipv6_as_the_setting_does() -> None:
    policy = AddressPolicy()
    with raises(ForbiddenAddressError, code="forbidden_address") as caught:
        policy.check_addresses("intranet.example.org", 443, [("10.1.2.3", 443)])
    assert "10.1.2.3" not in str(caught.value)
    with raises(ForbiddenAddressError) as caught:
        policy.check_addresses("fd00::1", 8080, [("fd00::1", 8080)])
    assert "[fd00::1]:8080" in str(caught.value)
    AddressPolicy(("[fd00::1]:8080",)).check_addresses("fd00::1", 8080, [("fd00::1", 8080)])
