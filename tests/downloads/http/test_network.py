"""The guard, proven with a resolver and a connector of the test's own: nothing is connected to before it is checked."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path

import pytest
import trustme

from lora_service.downloads.fetcher import Fetcher
from lora_service.downloads.http.addresses import AddressPolicy
from lora_service.downloads.http.network import Network
from lora_service.downloads.resolve import resolve
from lora_service.errors import ForbiddenAddressError, LinkError, UnreachableError
from lora_service.settings import Settings
from tests.downloads.http.test_addresses import PRIVATE, PUBLIC
from tests.downloads.link_fakes import QUICK, FakeSites, safetensors
from tests.errors import raises

FILE = "https://files.example.org/lora.safetensors"


class Recorder:
    """A connector that notes where it was to connect; it reaches loopback or nothing."""

    def __init__(self, port: int = 0) -> None:
        self.dialled: list[str] = []
        self._port = port

    def __call__(self, address: tuple[str, int], timeout: float) -> socket.socket:
        self.dialled.append(address[0])
        if not self._port:
            raise ConnectionRefusedError
        return socket.create_connection(("127.0.0.1", self._port), timeout)


def fetch(folder: Path, network: Network, url: str = FILE) -> Path:
    return Fetcher(Settings(lora_cache=folder), network, QUICK).fetch(resolve(url))


def always(*addresses: str) -> Iterator[list[str]]:
    return repeat(list(addresses))


def guarded(recorder: Recorder, answers: Iterator[list[str]], **more: object) -> Network:
    resolver = lambda host, port: [(address, port) for address in next(answers)]  # noqa: E731
    return Network(AddressPolicy(), resolver=resolver, connector=recorder, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("address", PRIVATE, ids=[f"{address} {kind}" for address, kind in PRIVATE.items()])
@pytest.mark.attack("links to addresses inside (G11)")
def test_a_name_of_a_private_address_is_never_connected_to(address: str, tmp_path: Path) -> None:
    recorder = Recorder()
    with raises(ForbiddenAddressError, code="forbidden_address") as caught:
        fetch(tmp_path, guarded(recorder, always(address)))
    assert "'files.example.org'" in str(caught.value)
    assert recorder.dialled == []


@pytest.mark.parametrize("addresses", [("8.8.8.8", "10.0.0.1"), ("10.0.0.1", "8.8.8.8"), ("8.8.8.8", "::1")])
@pytest.mark.attack("links to addresses inside (G11)")
def test_one_private_address_among_public_ones_is_enough_to_refuse(addresses: tuple[str, ...], tmp_path: Path) -> None:
    recorder = Recorder()
    with raises(ForbiddenAddressError, code="forbidden_address"):
        fetch(tmp_path, guarded(recorder, always(*addresses)))
    assert recorder.dialled == []


@pytest.mark.attack("links to addresses inside (G11)")
def test_the_checked_address_is_the_one_connected_to_and_the_name_is_looked_up_once(
    sites: FakeSites, tmp_path: Path
) -> None:
    """A name that is public when checked and private a moment later gains nothing by it."""
    sites.serve(FILE, safetensors())
    recorder = Recorder(sites.port)
    answers = chain([["93.184.216.34"]], always("127.0.0.1"))
    path = fetch(tmp_path, guarded(recorder, answers, tls=sites.client_tls()))
    assert path.read_bytes() == safetensors()
    assert recorder.dialled == ["93.184.216.34"]


@pytest.mark.attack("links to addresses inside (G11)")
def test_a_name_that_turns_private_between_two_attempts_is_refused_at_the_second(tmp_path: Path) -> None:
    recorder = Recorder()
    with raises(ForbiddenAddressError, code="forbidden_address"):
        fetch(tmp_path, guarded(recorder, chain([["93.184.216.34"]], always("127.0.0.1"))))
    assert recorder.dialled == ["93.184.216.34"]


@pytest.mark.parametrize(
    "target",
    ["http://127.0.0.1/", "http://169.254.169.254/latest/meta-data/", "http://[::1]/", "http://[::ffff:10.0.0.1]/"],
)
@pytest.mark.attack("links to addresses inside (G11)")
def test_a_redirect_to_a_private_address_is_refused_before_it_is_connected_to(
    target: str, sites: FakeSites, tmp_path: Path
) -> None:
    sites.route("files.example.org", "/lora.safetensors", lambda exchange: exchange.redirect(target))
    recorder = Recorder(sites.port)

    def resolver(host: str, port: int) -> list[tuple[str, int]]:
        return [("93.184.216.34" if host == "files.example.org" else host, port)]

    network = Network(AddressPolicy(), resolver=resolver, connector=recorder, tls=sites.client_tls())
    with raises(ForbiddenAddressError, code="forbidden_address"):
        fetch(tmp_path, network)
    assert recorder.dialled == ["93.184.216.34"]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "[::1]", "localhost"])
@pytest.mark.attack("links to addresses inside (G11)")
def test_every_spelling_of_loopback_is_refused_by_the_systems_own_resolver(host: str, tmp_path: Path) -> None:
    recorder = Recorder()
    with raises(ForbiddenAddressError, code="forbidden_address"):
        fetch(tmp_path, Network(AddressPolicy(), connector=recorder), f"http://{host}/a.safetensors")
    assert recorder.dialled == []


@pytest.mark.parametrize(
    ("target", "code"),
    [("https://example.org:22/", "forbidden_port"), ("https://u:p@example.org/", "credentials_in_link")],
)
@pytest.mark.attack("links to addresses inside (G11)")
def test_a_redirect_to_another_service_or_with_a_password_is_refused(
    target: str, code: str, sites: FakeSites, tmp_path: Path
) -> None:
    sites.route("files.example.org", "/lora.safetensors", lambda exchange: exchange.redirect(target))
    with raises(ForbiddenAddressError, code=code):
        sites.fetcher(tmp_path).fetch(resolve(FILE))
    assert len(sites.requests) == 1


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("file:///etc/passwd", "not_a_link"),
        ("ftp://example.org/a", "not_a_link"),
        ("data:,x", "not_a_link"),
        ("https://[", "malformed_link"),
        ("http://[::1", "malformed_link"),
        ("https://a b/", "malformed_link"),
    ],
)
@pytest.mark.attack("links to addresses inside (G11)")
def test_a_redirect_away_from_the_web_is_refused(target: str, code: str, sites: FakeSites, tmp_path: Path) -> None:
    sites.route("files.example.org", "/lora.safetensors", lambda exchange: exchange.redirect(target))
    with raises(LinkError, code=code):
        sites.fetcher(tmp_path).fetch(resolve(FILE))


@pytest.mark.attack("links to addresses inside (G11)")
def test_pictures_are_fetched_through_the_same_guard(tmp_path: Path) -> None:
    recorder = Recorder()
    fetcher = Fetcher(Settings(lora_cache=tmp_path), guarded(recorder, always("10.0.0.1")), QUICK)
    with raises(ForbiddenAddressError, code="forbidden_address"):
        fetcher.download(resolve("https://files.example.org/a.png"), tmp_path / "in")
    assert recorder.dialled == []


def test_without_a_network_of_its_own_a_fetcher_takes_the_settings_guard(tmp_path: Path) -> None:
    settings = Settings(lora_cache=tmp_path)
    with raises(ForbiddenAddressError, code="forbidden_address"):
        Fetcher(settings).fetch(resolve("http://127.0.0.1:80/a.safetensors"))


def test_what_the_settings_list_is_fetched_although_private(authority: trustme.CA, tmp_path: Path) -> None:
    with FakeSites(authority, with_tls=False) as plain:
        plain.serve("http://127.0.0.1/a.safetensors", safetensors())
        settings = Settings(lora_cache=tmp_path, allow_private_addresses=(f"127.0.0.1:{plain.port}",))
        path = Fetcher(settings).fetch(resolve(f"http://127.0.0.1:{plain.port}/a.safetensors"))
    assert path.read_bytes() == safetensors()


def test_the_next_address_is_tried_when_one_does_not_answer(sites: FakeSites, tmp_path: Path) -> None:
    sites.serve(FILE, safetensors())
    reached = Recorder(sites.port)

    def connector(address: tuple[str, int], timeout: float) -> socket.socket:
        if address[0] == PUBLIC[0]:
            raise ConnectionRefusedError
        return reached(address, timeout)

    resolver = lambda host, port: [(address, port) for address in PUBLIC[:2]]  # noqa: E731
    assert fetch(tmp_path, Network(AddressPolicy(), resolver=resolver, connector=connector, tls=sites.client_tls()))


def test_an_unknown_host_is_not_looked_up_again(tmp_path: Path) -> None:
    lookups = []

    def resolver(host: str, port: int) -> list[tuple[str, int]]:
        lookups.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    with raises(LinkError, code="unknown_host") as caught:
        fetch(tmp_path, Network(AddressPolicy(), resolver=resolver))
    assert "'files.example.org'" in str(caught.value)
    assert lookups == ["files.example.org"]


def test_a_certificate_of_another_name_is_refused(sites: FakeSites, tmp_path: Path) -> None:
    with raises(LinkError, code="untrusted_certificate"):
        sites.fetcher(tmp_path).fetch(resolve("https://unnamed.example.org/a.safetensors"))
    assert sites.requests == []


def test_a_host_that_does_not_answer_is_named(tmp_path: Path) -> None:
    with raises(UnreachableError, code="unreachable") as caught:
        fetch(tmp_path, guarded(Recorder(), always("8.8.8.8")))
    assert "'files.example.org' does not answer on port 443" in str(caught.value)
