"""``lora-service resolve`` and ``lora-service cache``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from lora_service.cli.links import cache_group, resolve_command
from lora_service.downloads.progress import bar
from lora_service.errors import LinkError
from tests.downloads.link_fakes import FakeSites, safetensors

DRIVE_LINK = "https://drive.google.com/file/d/1AbCdEfGh/view"
LINK = "https://files.example.org/lora.safetensors"


def test_resolve_prints_one_object() -> None:
    result = CliRunner().invoke(resolve_command, ["https://civitai.com/models/1?token=SECRET", "--json"])
    printed = json.loads(result.output)
    assert set(printed) == {"site", "url", "headers", "cache_key"}
    assert printed["url"] == "https://civitai.com/api/v1/models/1"
    assert printed["headers"] == ["Authorization"]
    assert "SECRET" not in result.output


def test_resolve_prints_lines_for_people() -> None:
    result = CliRunner().invoke(resolve_command, [DRIVE_LINK])
    assert "google-drive" in result.output
    assert "https://drive.usercontent.google.com/download?id=1AbCdEfGh&export=download&confirm=t" in result.output
    assert "listing" in CliRunner().invoke(resolve_command, ["owner/name"]).output


def test_resolve_leaves_mistakes_to_the_command_line() -> None:
    result = CliRunner().invoke(resolve_command, ["ftp://example.org/a"])
    assert isinstance(result.exception, LinkError)


def test_the_cache_is_listed_and_cleared(sites: FakeSites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORA_CACHE", str(tmp_path))
    sites.serve(LINK, safetensors(2**18))
    path = sites.fetcher(tmp_path).fetch(LINK)
    listed = CliRunner().invoke(cache_group, ["ls"]).output
    assert LINK in listed
    assert path.stem[:12] in listed
    assert f"1.0 MiB in {tmp_path}" in listed
    assert "1 file, 1.0 MiB, removed" in CliRunner().invoke(cache_group, ["clear"]).output
    assert CliRunner().invoke(cache_group, ["ls"]).output == f"0.0 MiB in {tmp_path}\n"


def test_an_empty_cache_is_no_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORA_CACHE", str(tmp_path / "none"))
    for command in ("ls", "clear"):
        assert CliRunner().invoke(cache_group, [command]).exit_code == 0


def test_a_bar_shows_how_far_a_download_is(capsys: pytest.CaptureFixture[str]) -> None:
    with bar("lora", seconds=0) as update:
        update(1024, 4096)
        update(4096, 4096)
    shown = capsys.readouterr().err
    assert "lora" in shown
    assert "4.00k/4.00k" in shown


def test_links_need_no_torch() -> None:
    code = "import sys, lora_service.downloads, lora_service.cli.links; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
