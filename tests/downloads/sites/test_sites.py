"""Each site played on loopback: its files, its pages, its refusals."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lora_service.downloads import Fetcher
from lora_service.errors import LinkError
from tests.downloads.link_fakes import Exchange, FakeSites, safetensors

LORA = safetensors()
SHA256 = hashlib.sha256(LORA).hexdigest()
DRIVE_LINK = "https://drive.google.com/file/d/1AbCdEfGh/view?usp=sharing"
DRIVE = ("drive.usercontent.google.com", "/download")
HUB_FILE = "https://huggingface.co/o/m/blob/main/lora.safetensors"
CIVITAI_FILE = "https://civitai.com/api/download/models/202"


def refusal(fetcher: Fetcher, link: str, token: str | None = None) -> str:
    """The sentence that a fetch fails with."""
    with pytest.raises(LinkError) as caught:
        fetcher.fetch(link, token=token)
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert list((fetcher.cache.folder / "objects").glob("*")) == []
    return sentence


class TestGoogleDrive:
    def test_a_small_file_comes_at_once(self, sites: FakeSites, fetcher: Fetcher) -> None:
        sites.route(*DRIVE, lambda e: e.file(LORA, Content_Disposition='attachment; filename="a.safetensors"'))
        assert fetcher.fetch(DRIVE_LINK).read_bytes() == LORA
        assert sites.requests[0].query == {"id": "1AbCdEfGh", "export": "download", "confirm": "t"}

    def test_the_form_of_a_large_file_is_submitted(self, sites: FakeSites, fetcher: Fetcher) -> None:
        form = """<html><head><title>Google Drive - Virus scan warning</title></head><body>
            <p class="uc-warning-caption">Google Drive can't scan this file for viruses.</p>
            <form id="download-form" action="https://drive.usercontent.google.com/download" method="get">
            <input type="submit" value="Download anyway"/><input type="hidden" name="id" value="1AbCdEfGh">
            <input type="hidden" name="export" value="download"><input type="hidden" name="confirm" value="t">
            <input type="hidden" name="uuid" value="0a1b&amp;2c"></form></body></html>"""

        def answer(exchange: Exchange) -> None:
            if exchange.query.get("uuid") == "0a1b&2c":
                exchange.file(LORA)
            else:
                exchange.send(form.encode(), Content_Type="text/html; charset=utf-8")

        sites.route(*DRIVE, answer)
        assert fetcher.fetch(DRIVE_LINK).read_bytes() == LORA
        assert sites.requests[1].query == {"id": "1AbCdEfGh", "export": "download", "confirm": "t", "uuid": "0a1b&2c"}

    @pytest.mark.parametrize(
        "page",
        [
            '<a id="uc-download-link" href="/uc?export=download&amp;confirm=XyZ1&amp;id=1AbCdEfGh">Download</a>',
            '<script>{"downloadUrl":"https://drive.google.com/uc?confirm\\u003dXyZ1"}</script>',
        ],
    )
    def test_the_older_pages_of_a_large_file_are_followed(self, page: str, sites: FakeSites, fetcher: Fetcher) -> None:
        sites.route(*DRIVE, lambda e: e.send(page.encode(), Content_Type="text/html"))
        for host in ("drive.usercontent.google.com", "drive.google.com"):
            sites.route(host, "/uc", lambda e: e.file(LORA) if e.query["confirm"] == "XyZ1" else e.page(404, "no"))
        assert fetcher.fetch(DRIVE_LINK).read_bytes() == LORA

    def test_a_page_that_confirms_itself_for_ever_is_given_up(self, sites: FakeSites, fetcher: Fetcher) -> None:
        form = b'<form id="download-form" action="/download"><input type="hidden" name="id" value="1"></form>'
        sites.route(*DRIVE, lambda e: e.send(form, Content_Type="text/html"))
        assert "from page to page" in refusal(fetcher, DRIVE_LINK)
        assert len(sites.requests) == 3

    @pytest.mark.parametrize("status", [200, 403, 429])
    def test_the_quota_page_is_shown_in_its_own_words(self, status: int, sites: FakeSites, fetcher: Fetcher) -> None:
        page = (
            '<html><head><title>Google Drive - Quota exceeded</title></head><body><p class="uc-error-caption">Sorry</p>'
            '<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently.\n'
            'Please try <a href="/x">again</a> later &amp; wait.</p></body></html>'
        )
        sites.route(*DRIVE, lambda e: e.send(page.encode(), status, Content_Type="text/html"))
        words = "“Too many users have viewed or downloaded this file recently. Please try again later & wait.”"
        assert words in refusal(fetcher, DRIVE_LINK)
        assert len(sites.requests) == 1

    def test_the_page_of_a_file_that_is_not_shared_tells_how_to_share_it(
        self, sites: FakeSites, fetcher: Fetcher
    ) -> None:
        sites.route(*DRIVE, lambda e: e.redirect("https://accounts.google.com/ServiceLogin?continue=x"))
        assert "Anyone with the link" in refusal(fetcher, DRIVE_LINK)
        sites.route(*DRIVE, lambda e: e.page(403, "Google Drive - Access Denied"))
        assert "Anyone with the link" in refusal(fetcher, DRIVE_LINK)
        assert sites.asked("accounts.google.com") == []

    def test_a_page_that_nobody_knows_is_named_by_its_title(self, sites: FakeSites, fetcher: Fetcher) -> None:
        sites.route(*DRIVE, lambda e: e.page(200, "My folder - Google Drive"))
        assert "(“My folder - Google Drive”)" in refusal(fetcher, DRIVE_LINK)

    def test_a_file_that_is_gone_is_said_to_be(self, sites: FakeSites, fetcher: Fetcher) -> None:
        assert "Google Drive has no such file" in refusal(fetcher, DRIVE_LINK)

    def test_a_folder_is_refused_without_asking(self, sites: FakeSites, fetcher: Fetcher) -> None:
        assert "is a folder" in refusal(fetcher, "https://drive.google.com/drive/folders/1AbCdEfGh")
        assert sites.requests == []


class TestHuggingFace:
    def redirecting(self, sites: FakeSites, sha256: str = SHA256) -> None:
        sites.route(
            "huggingface.co",
            "/o/m/resolve/main/lora.safetensors",
            lambda e: e.redirect("https://cdn.example.org/blob?sig=1", X_Linked_Etag=f'"{sha256}"'),
        )
        sites.serve("https://cdn.example.org/blob", LORA)

    def test_the_token_goes_to_the_hub_and_not_on_to_the_storage(self, sites: FakeSites, fetcher: Fetcher) -> None:
        self.redirecting(sites)
        assert fetcher.fetch(HUB_FILE, token="hf_abc").read_bytes() == LORA
        assert [(seen.host, seen.token) for seen in sites.requests] == [
            ("huggingface.co", "Bearer hf_abc"),
            ("cdn.example.org", ""),
        ]

    def test_a_redirect_back_home_does_not_bring_the_token_back(self, sites: FakeSites, fetcher: Fetcher) -> None:
        path = "/o/m/resolve/main/lora.safetensors"
        sites.route("huggingface.co", path, lambda e: e.redirect("https://other.example.org/x"))
        sites.route("other.example.org", "/x", lambda e: e.redirect("https://huggingface.co/y"))
        sites.serve("https://huggingface.co/y", LORA)
        fetcher.fetch(HUB_FILE, token="hf_abc")
        assert [seen.token for seen in sites.requests] == ["Bearer hf_abc", "", ""]

    def test_a_file_that_differs_from_the_announced_hash_is_refused(self, sites: FakeSites, fetcher: Fetcher) -> None:
        self.redirecting(sites, sha256="0" * 64)
        assert "SHA-256 differs" in refusal(fetcher, HUB_FILE)

    def test_the_one_file_of_a_repository_is_found(self, sites: FakeSites, fetcher: Fetcher) -> None:
        self.list_files(sites, "README.md", "lora.safetensors", "lora.bin")
        self.redirecting(sites)
        assert fetcher.fetch("o/m").read_bytes() == LORA

    def test_several_files_of_a_repository_are_named(self, sites: FakeSites, fetcher: Fetcher) -> None:
        self.list_files(sites, "b.safetensors", "a.safetensors", "deep/c.safetensors")
        sentence = refusal(fetcher, "https://huggingface.co/o/m")
        assert "3 .safetensors files" in sentence
        assert "a.safetensors, b.safetensors, deep/c.safetensors" in sentence

    def test_a_folder_of_a_repository_is_looked_into_alone(self, sites: FakeSites, fetcher: Fetcher) -> None:
        self.list_files(sites, "b.safetensors", "deep/c d.safetensors")
        sites.serve("https://huggingface.co/o/m/resolve/main/deep/c%20d.safetensors", LORA)
        assert fetcher.fetch("https://huggingface.co/o/m/tree/main/deep").read_bytes() == LORA

    def test_a_repository_without_a_lora_is_said_to_have_none(self, sites: FakeSites, fetcher: Fetcher) -> None:
        self.list_files(sites, "model.bin")
        assert "holds no .safetensors file" in refusal(fetcher, "o/m")

    def test_a_listing_that_is_none_is_refused(self, sites: FakeSites, fetcher: Fetcher) -> None:
        for body in (b"[]", b'{"siblings": [1, {"rfilename": 2}]}', b"{", b"[" * 100_000):
            sites.serve("https://huggingface.co/api/models/o/m/revision/main", body, etag="")
            assert "o/m" in refusal(fetcher, "o/m")

    @pytest.mark.parametrize(
        ("status", "token", "words"),
        [
            (401, None, "private, gated or not there"),
            (401, "hf_x", "token does not open it.*accept the conditions at https://huggingface.co/o/m"),
            (403, None, "give a Hugging Face token as api_token or HF_TOKEN"),
            (403, "hf_x", "token does not open it"),
            (404, None, "no such file or revision in o/m"),
        ],
    )
    def test_a_refusal_says_what_to_do(
        self, status: int, token: str | None, words: str, sites: FakeSites, fetcher: Fetcher
    ) -> None:
        sites.route("huggingface.co", "/o/m/resolve/main/lora.safetensors", lambda e: e.send(b"{}", status))
        sentence = refusal(fetcher, HUB_FILE, token)
        assert re.search(words, sentence)
        assert "hf_x" not in sentence

    def list_files(self, sites: FakeSites, *names: str) -> None:
        siblings = [{"rfilename": name, "lfs": {"sha256": SHA256}} for name in names]
        sites.serve("https://huggingface.co/api/models/o/m/revision/main", json.dumps({"siblings": siblings}).encode())


class TestCivitai:
    def test_the_token_is_not_sent_on_to_the_storage(self, sites: FakeSites, fetcher: Fetcher) -> None:
        sites.route("civitai.com", "/api/download/models/202", self.presigned)
        sites.serve("https://storage.example.org/f", LORA)
        assert fetcher.fetch(CIVITAI_FILE, token="abc").read_bytes() == LORA
        assert [(seen.host, seen.token) for seen in sites.requests] == [
            ("civitai.com", "Bearer abc"),
            ("storage.example.org", ""),
        ]

    def test_a_token_in_the_link_is_sent_as_a_header_instead(self, sites: FakeSites, fetcher: Fetcher) -> None:
        sites.route("civitai.com", "/api/download/models/202", self.presigned)
        sites.serve("https://storage.example.org/f", LORA)
        fetcher.fetch(f"{CIVITAI_FILE}?token=abc")
        assert (sites.requests[0].token, sites.requests[0].query) == ("Bearer abc", {})

    def presigned(self, exchange: Exchange) -> None:
        if exchange.headers.get("Authorization") == "Bearer abc":
            exchange.redirect("https://storage.example.org/f?X-Signature=1")
        else:
            exchange.send(b'{"error":"Unauthorized"}', 401, Content_Type="application/json")

    def test_without_a_token_it_is_said_where_to_get_one(self, sites: FakeSites, fetcher: Fetcher) -> None:
        sites.route("civitai.com", "/api/download/models/202", self.presigned)
        assert "make an API key in your Civitai account settings" in refusal(fetcher, CIVITAI_FILE)
        assert "does not accept the token" in refusal(fetcher, CIVITAI_FILE, token="wrong")

    def test_a_redirect_to_its_login_page_means_the_same(self, sites: FakeSites, fetcher: Fetcher) -> None:
        sites.route("civitai.com", "/api/download/models/202", lambda e: e.redirect("/login?reason=download-auth", 307))
        assert "make an API key" in refusal(fetcher, CIVITAI_FILE)

    def test_a_models_number_in_place_of_a_versions_is_recognised(self, sites: FakeSites, fetcher: Fetcher) -> None:
        sites.route("civitai.com", "/api/download/models/202", lambda e: e.send(b"{}", 404))
        assert "paste https://civitai.com/models/202 instead" in refusal(fetcher, CIVITAI_FILE)

    def test_of_a_bare_model_the_newest_version_is_taken(self, sites: FakeSites, fetcher: Fetcher) -> None:
        versions = [
            self.version(201, "2023-01-01T00:00:00Z", "old.safetensors"),
            self.version(203, "2024-01-01T00:00:00Z", "pickle.pt"),
            self.version(202, "2023-06-01T00:00:00Z", "new.safetensors"),
        ]
        self.describe(sites, {"type": "LORA", "modelVersions": versions})
        sites.serve(CIVITAI_FILE, LORA)
        assert fetcher.fetch("https://civitai.com/models/101").read_bytes() == LORA
        assert sites.requests[1].query == {"type": "Model", "format": "SafeTensor"}

    def version(self, number: int, published: str, name: str) -> dict[str, object]:
        file = {"name": name, "primary": True, "hashes": {"SHA256": SHA256.upper()}}
        return {"id": number, "publishedAt": published, "files": [file]}

    def describe(self, sites: FakeSites, model: object) -> None:
        sites.serve("https://civitai.com/api/v1/models/101", json.dumps(model).encode(), etag="")

    def test_a_checkpoint_and_an_empty_model_are_refused(self, sites: FakeSites, fetcher: Fetcher) -> None:
        self.describe(sites, {"type": "Checkpoint", "modelVersions": []})
        assert "whole checkpoint" in refusal(fetcher, "https://civitai.com/models/101")
        self.describe(sites, {"type": "LORA", "modelVersions": [{"id": 1, "files": []}]})
        assert "holds no .safetensors file" in refusal(fetcher, "https://civitai.com/models/101")


class TestOthers:
    def test_dropbox_gives_the_file_or_a_page(self, sites: FakeSites, fetcher: Fetcher) -> None:
        def answer(exchange: Exchange) -> None:
            if exchange.query == {"rlkey": "k", "dl": "1"}:
                exchange.file(LORA)
            else:
                exchange.page(200, "Dropbox - a.safetensors")

        sites.route("www.dropbox.com", "/scl/fi/x/a.safetensors", answer)
        assert "expired or asks for a password" in refusal(fetcher, "https://www.dropbox.com/scl/fi/x/a.safetensors")
        link = "https://www.dropbox.com/scl/fi/x/a.safetensors?rlkey=k&dl=0"
        assert fetcher.fetch(link).read_bytes() == LORA

    def test_a_git_lfs_pointer_is_named_and_where_the_content_is(self, sites: FakeSites, fetcher: Fetcher) -> None:
        pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 9\n"
        sites.serve("https://raw.githubusercontent.com/o/r/main/a.safetensors", pointer)
        sentence = refusal(fetcher, "https://github.com/o/r/blob/main/a.safetensors")
        assert "Git LFS pointer" in sentence
        assert "paste https://media.githubusercontent.com/media/o/r/main/a.safetensors instead" in sentence

    @pytest.mark.parametrize("status", [403, 404])
    def test_what_replicate_has_deleted_is_told_as_expired(
        self, status: int, sites: FakeSites, fetcher: Fetcher
    ) -> None:
        sites.route("replicate.delivery", "/pbxt/a", lambda e: e.send(b"", status))
        assert "it has expired" in refusal(fetcher, "https://replicate.delivery/pbxt/a")

    def test_a_web_page_with_status_200_is_no_file(self, sites: FakeSites, fetcher: Fetcher, tmp_path: Path) -> None:
        link = "https://files.example.org/a"
        sites.route("files.example.org", "/a", lambda e: e.page(200, "Welcome"))
        assert "web page came instead of a file; copy the link of the download button (“Welcome”)" in refusal(
            fetcher, link
        )
        with pytest.raises(LinkError, match="web page"):
            fetcher.download(link, tmp_path / "in")
        sites.serve(link, b"\n<!DOCTYPE html><html></html>" + b" " * 600)
        assert "web page" in refusal(fetcher, link)

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            (b"\x89PNG\r\n\x1a\n" + bytes(600), "picture"),
            (b"PK\x03\x04" + bytes(600), "zip"),
            (b'{"error": "nothing here"}', "JSON"),
            (LORA[:-1], "cut off|ends at byte"),
            (b"", "0 bytes"),
        ],
    )
    def test_another_kind_of_file_is_refused_by_name(
        self, body: bytes, words: str, sites: FakeSites, fetcher: Fetcher
    ) -> None:
        sites.serve("https://files.example.org/a", body)
        sentence = refusal(fetcher, "https://files.example.org/a")
        assert sentence.startswith("What the link 'https://files.example.org/a' leads to ")
        assert any(word in sentence for word in words.split("|"))


def test_an_unchanged_program_fetches_a_drive_link_from_the_environment_alone(sites: FakeSites, tmp_path: Path) -> None:
    """What the tests of the whole service use: nothing of the program is replaced, its guard least of all."""
    sites.route(*DRIVE, lambda e: e.file(LORA))
    program = f"""
from lora_service.downloads import Fetcher
from lora_service.settings import Settings
print(Fetcher(Settings.from_environment()).fetch({DRIVE_LINK!r}))
"""
    environment = {**os.environ, **sites.environment(tmp_path), "LORA_CACHE": str(tmp_path / "cache")}
    found = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()).read_bytes() == LORA
    environment["ALLOW_PRIVATE_ADDRESSES"] = ""
    environment["LORA_CACHE"] = str(tmp_path / "other")
    refused = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert "not on the public internet" in refused.stderr


def test_a_listing_is_read_once_for_many_fetches(sites: FakeSites, fetcher: Fetcher) -> None:
    listing = json.dumps({"siblings": [{"rfilename": "a.safetensors"}]}).encode()
    sites.serve("https://huggingface.co/api/models/o/m/revision/main", listing)
    sites.serve("https://huggingface.co/o/m/resolve/main/a.safetensors", LORA)
    assert fetcher.fetch("o/m") == fetcher.fetch("https://huggingface.co/o/m") == fetcher.fetch("o/m")
    assert len(sites.requests) == 2
