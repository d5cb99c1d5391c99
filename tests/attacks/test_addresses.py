"""Spellings of addresses inside: none is connected to, and no refusal tells what a name means there."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, ip_address
from pathlib import Path

import pytest

from lora_service.downloads.fetcher import Fetcher
from lora_service.downloads.http.addresses import AddressPolicy, is_public
from lora_service.downloads.http.network import Network
from lora_service.downloads.resolve import resolve
from lora_service.errors import LinkError
from lora_service.settings import Settings
from tests.downloads.link_fakes import QUICK

INSIDE = ("127.0.0.1", "10.0.0.1", "169.254.169.254", "192.168.1.1", "172.16.5.4", "100.64.0.1", "0.0.0.0")
SPELLINGS = 900


def spellings(address: str, rng: random.Random) -> Iterator[str]:
    """Yield hosts that some resolver takes for an IPv4 address."""
    number, parts = int(IPv4Address(address)), [int(part) for part in address.split(".")]
    forms = (str, hex, lambda n: f"0{n:o}", lambda n: f"0x{n:08X}", lambda n: f"{n:012d}")
    yield from (form(number) for form in forms)
    for _ in range(60):
        yield ".".join(rng.choice(forms)(part) for part in parts)
    for count in (2, 3):  # the last part stands for the rest
        rest = number & (256 ** (5 - count) - 1)
        yield ".".join([*map(str, parts[: count - 1]), str(rest)])
        yield ".".join([*map(hex, parts[: count - 1]), hex(rest)])
    for prefix in ("::ffff:", "::", "64:ff9b::", "::ffff:0:", "2002:"):
        yield f"[{prefix}{address if prefix != '2002:' else f'{number >> 16:x}:{number & 0xFFFF:x}::'}]"
        yield f"[{prefix}{number >> 16:x}:{number & 0xFFFF:x}]" if prefix != "2002:" else f"[2002:{number >> 16:x}::]"
    yield from (f"{address}.", f"{address}..", f"{address}%00", f"{address}#@example.org", f"example.org@{address}")
    wide = str.maketrans("0123456789.", "０１２３４５６７８９。")
    circled = str.maketrans("123456789", "①②③④⑤⑥⑦⑧⑨")
    yield from (address.translate(wide), address.translate(circled), address.replace(".", "\u3002"))
    yield from (f"{address}\\@example.org", f" {address}", f"{address}:80", f"{address}:443", f"{address}:8080")


ALL = [(address, host) for address in INSIDE for host in spellings(address, random.Random(address))]


@pytest.mark.attack("spellings of addresses (G11)", count=len(ALL))
def test_no_spelling_of_an_address_inside_is_connected_to(tmp_path: Path) -> None:
    dialled: list[tuple[str, int]] = []

    def connect(address: tuple[str, int], timeout: float) -> socket.socket:
        dialled.append(address)
        raise ConnectionRefusedError

    fetcher = Fetcher(
        Settings(lora_cache=tmp_path), Network(AddressPolicy(), connector=connect, resolver=_numeric), QUICK
    )
    assert len(ALL) > 500
    for _, host in ALL:
        for link in (f"http://{host}/a.safetensors",):
            with pytest.raises(LinkError):
                fetcher.fetch(resolve(link))
    assert [address for address, _ in dialled if not is_public(address)] == []


def _numeric(host: str, port: int) -> list[tuple[str, int]]:
    """Resolve as the system does, without asking any server."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except OSError as error:
        raise socket.gaierror(socket.EAI_NONAME, "unknown") from error
    return [(str(entry[4][0]), port) for entry in found]


@pytest.mark.attack("spellings of addresses (G11)", count=len(INSIDE))
def test_a_refusal_of_a_name_does_not_tell_its_address(tmp_path: Path) -> None:
    for address in INSIDE:
        network = Network(AddressPolicy(), resolver=lambda host, port, found=address: [(found, port)])  # type: ignore[misc]
        with pytest.raises(LinkError) as caught:
            Fetcher(Settings(lora_cache=tmp_path), network, QUICK).fetch(resolve("http://intranet.example.org/a"))
        assert str(ip_address(address)) not in str(caught.value)
