"""LoRAs fetched into the cache; pictures and archives downloaded into a folder, under safe names."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from lora_service.downloads.fetcher import Fetcher
from lora_service.downloads.resolve import resolve
from lora_service.errors import LinkError
from tests.downloads.link_fakes import FakeSites, safetensors
from tests.errors import raises

FILE = "https://files.example.org/lora.safetensors"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(700)


def test_a_file_is_fetched_once_and_then_comes_from_the_cache(sites: FakeSites, fetcher: Fetcher) -> None:
    sites.serve(FILE, safetensors())
    first, second = fetcher.fetch(resolve(FILE)), fetcher.fetch(resolve(FILE))
    assert first == second
    assert first.read_bytes() == safetensors()
    assert len(sites.requests) == 1


def test_a_picture_goes_under_its_own_name_into_the_folder(sites: FakeSites, fetcher: Fetcher, tmp_path: Path) -> None:
    sites.serve("https://files.example.org/a%20cat.png", b"\x89PNG")
    got = [fetcher.download(resolve("https://files.example.org/a%20cat.png"), tmp_path / "in") for _ in range(2)]
    assert [path.name for path in got] == ["a cat.png", "a cat-2.png"]
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == ["a cat-2.png", "a cat.png"]


@pytest.mark.parametrize(
    ("path", "headers", "name"),
    [
        ("/cat.png", {}, "cat.png"),
        ("/", {}, "file.bin"),
        ("/x", {"Content_Disposition": 'attachment; filename="my cat.jpg"'}, "my cat.jpg"),
        ("/x", {"Content_Disposition": "attachment; filename*=UTF-8''k%C3%A4tzchen.zip"}, "kätzchen.zip"),
        ("/x", {"Content_Disposition": 'attachment; filename="../../etc/passwd.png"'}, "passwd.png"),
        ("/x", {"Content_Disposition": 'attachment; filename="..\\\\..\\\\evil.png"'}, "evil.png"),
        ("/x", {"Content_Disposition": 'attachment; filename=".bashrc"'}, "bashrc.bin"),
        ("/..%2f..%2fevil.png", {}, "evil.png"),
        (f"/{'n' * 300}.png", {}, f"{'n' * 116}.png"),
    ],
)
def test_a_file_gets_a_safe_name(
    path: str, headers: dict[str, str], name: str, sites: FakeSites, fetcher: Fetcher, tmp_path: Path
) -> None:
    sites.route("files.example.org", path, lambda e: e.file(PNG, **headers))
    got = fetcher.download(resolve(f"https://files.example.org{path}"), tmp_path / "in")
    assert (got.parent, got.name) == (tmp_path / "in", name)
    assert got.read_bytes() == PNG


def test_a_picture_from_google_drive_comes_like_any_file(sites: FakeSites, fetcher: Fetcher, tmp_path: Path) -> None:
    named = {"Content_Disposition": 'attachment; filename="me.jpg"'}
    sites.route("drive.usercontent.google.com", "/download", lambda e: e.file(PNG, **named))
    assert fetcher.download(resolve("https://drive.google.com/file/d/1AbCdEfGh/view"), tmp_path / "in").name == "me.jpg"


def test_a_data_uri_becomes_a_file_of_its_type(fetcher: Fetcher, tmp_path: Path) -> None:
    link = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    got = fetcher.download(resolve(link), tmp_path / "in")
    assert (got.name, got.read_bytes()) == ("data.png", PNG)
    with raises(LinkError, code="too_large"):
        fetcher.download(resolve(link), tmp_path / "in", max_bytes=100)


def test_the_cap_for_archives_is_its_own(sites: FakeSites, tmp_path: Path) -> None:
    sites.serve("https://files.example.org/a.zip", bytes(3 * 1024**2))
    fetcher = sites.fetcher(tmp_path / "cache", max_zip_bytes=2 * 1024**2)
    with raises(LinkError, code="too_large"):
        fetcher.download(resolve("https://files.example.org/a.zip"), tmp_path / "in")
    assert list((tmp_path / "in").iterdir()) == []


def test_a_link_to_a_model_is_no_picture(sites: FakeSites, fetcher: Fetcher, tmp_path: Path) -> None:
    with raises(LinkError, code="model_link"):
        fetcher.download(resolve("o/m"), tmp_path / "in")
    assert sites.requests == []
