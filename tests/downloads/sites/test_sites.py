"""Each site played on loopback: its files, its pages, its refusals."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lora_service.downloads.fetcher import Fetcher
from lora_service.downloads.resolve import resolve
from lora_service.errors import LinkError
from tests.downloads.link_fakes import Exchange, FakeSites, safetensors
from tests.errors import raises

LORA = safetensors()
SHA256 = hashlib.sha256(LORA).hexdigest()
DRIVE_LINK = "https://drive.google.com/file/d/1AbCdEfGh/view?usp=sharing"
DRIVE = ("drive.usercontent.google.com", "/download")
HUB_FILE = "https://huggingface.co/o/m/blob/main/lora.safetensors"
CIVITAI_FILE = "https://civitai.com/api/download/models/202"


def refusal(fetcher: Fetcher, link: str, code: str, token: str | None = None) -> str:
    """Expect a fetch to fail with an error code, and return the sentence."""
    with raises(LinkError, code=code) as caught:
        fetcher.fetch(resolve(link), token=token)
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert list((fetcher.cache.folder / "objects").glob("*")) == []
    return sentence


class TestGoogleDrive:
    def test_a_small_file_comes_at_once(self, sites: FakeSites, fetcher: Fetcher) -> None:
        sites.route(*DRIVE, lambda e: e.file(LORA, Content_Disposition='attachment; filename="a.safetensors"'))
        assert fetcher.fetch(resolve(DRIVE_LINK)).read_bytes() == LORA
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
        assert fetcher.fetch(resolve(DRIVE_LINK)).read_bytes() == LORA
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
        assert fetcher.fetch(resolve(DRIVE_LINK)).read_bytes() == LORA

    def test_a_page_that_confirms_itself_for_ever_is_given_up(self, sites: FakeSites, fetcher: Fetcher) -> None:
        form = b'<form id="download-form" action="/download"><input type="hidden" name="id" value="1"></form>'
        sites.route(*DRIVE, lambda e: e.send(form, Content_Type="text/html"))
        refusal(fetcher, DRIVE_LINK, "too_many_pages")
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
        assert words in refusal(fetcher, DRIVE_LINK, "refused_by_site")
        assert len(sites.requests) == 1

    def test_the_page_of_a_file_that_is_not_shared_tells_how_to_share_it(
        self, sites: FakeSites, fetcher: Fetcher
    ) -> None:
        sites.route(*DRIVE, lambda e: e.redirect("https://accounts.google.com/ServiceLogin?continue=x"))
        assert "Anyone with the link" in refusal(fetcher, DRIVE_LINK, "sign_in_required")
        sites.route(*DRIVE, lambda e: e.page(403, "Google Drive - Access Denied"))
        assert "Anyone with the link" in refusal(fetcher, DRIVE_LINK, "sign_in_required")
        assert sites.requests_to("accounts.google.com") == []

    def test_a_page_that_no_parser_can_read_is_a_page_still(self, sites: FakeSites, fetcher: Fetcher) -> None:
        sites.route(*DRIVE, lambda e: e.send(b"<![broken[ <title>x</title>", Content_Type="text/html"))
        refusal(fetcher, DRIVE_LINK, "html_instead_of_file")

    def test_a_page_that_nobody_knows_is_named_by_its_title(self, sites: FakeSites, fetcher: Fetcher) -> None:
        sites.route(*DRIVE, lambda e: e.page(200, "My folder - Google Drive"))
        assert "(“My folder - Google Drive”)" in refusal(fetcher, DRIVE_LINK, "html_instead_of_file")

    def test_a_file_that_is_gone_is_not_found(self, sites: FakeSites, fetcher: Fetcher) -> None:
        assert "Google Drive" in refusal(fetcher, DRIVE_LINK, "not_found")

    def test_a_folder_is_refused_without_asking(self, sites: FakeSites, fetcher: Fetcher) -> None:
        refusal(fetcher, "https://drive.google.com/drive/folders/1AbCdEfGh", "folder_link")
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
        assert fetcher.fetch(resolve(HUB_FILE), token="hf_abc").read_bytes() == LORA
        assert [(seen.host, seen.token) for seen in sites.requests] == [
            ("huggingface.co", "Bearer hf_abc"),
            ("cdn.example.org", ""),
        ]

    def test_a_redirect_back_home_does_not_bring_the_token_back(self, sites: FakeSites, fetcher: Fetcher) -> None:
        path = "/o/m/resolve/main/lora.safetensors"
        sites.route("huggingface.co", path, lambda e: e.redirect("https://other.example.org/x"))
        sites.route("other.example.org", "/x", lambda e: e.redirect("https://huggingface.co/y"))
        sites.serve("https://huggingface.co/y", LORA)
        fetcher.fetch(resolve(HUB_FILE), token="hf_abc")
        assert [seen.token for seen in sites.requests] == ["Bearer hf_abc", "", ""]

    def test_a_file_that_differs_from_the_announced_hash_is_refused(self, sites: FakeSites, fetcher: Fetcher) -> None:
        self.redirecting(sites, sha256="0" * 64)
        assert "0" * 12 in refusal(fetcher, HUB_FILE, "hash_mismatch")

    def test_the_one_file_of_a_repository_is_found(self, sites: FakeSites, fetcher: Fetcher) -> None:
        self.list_files(sites, "README.md", "lora.safetensors", "lora.bin")
        self.redirecting(sites)
        assert fetcher.fetch(resolve("o/m")).read_bytes() == LORA

    def test_several_files_of_a_repository_are_named(self, sites: FakeSites, fetcher: Fetcher) -> None:
        self.list_files(sites, "b.safetensors", "a.safetensors", "deep/c.safetensors")
        sentence = refusal(fetcher, "https://huggingface.co/o/m", "several_lora_files")
        assert "3 .safetensors files" in sentence
        assert "a.safetensors, b.safetensors, deep/c.safetensors" in sentence

    def test_a_folder_of_a_repository_is_looked_into_alone(self, sites: FakeSites, fetcher: Fetcher) -> None:
        self.list_files(sites, "b.safetensors", "deep/c d.safetensors")
        sites.serve("https://huggingface.co/o/m/resolve/main/deep/c%20d.safetensors", LORA)
        assert fetcher.fetch(resolve("https://huggingface.co/o/m/tree/main/deep")).read_bytes() == LORA

    def test_a_repository_without_a_lora_is_refused(self, sites: FakeSites, fetcher: Fetcher) -> None:
        self.list_files(sites, "model.bin")
        assert "o/m" in refusal(fetcher, "o/m", "no_lora_file")

    def test_a_listing_that_is_none_is_refused(self, sites: FakeSites, fetcher: Fetcher) -> None:
        unusable = (b"[]", b'{"siblings": [1, {"rfilename": 2}]}', b'{"siblings": null}', b'{"siblings": 3}')
        unreadable = (b"{", b"[" * 100_000)
        for body in (*unusable, *unreadable):
            sites.serve("https://huggingface.co/api/models/o/m/revision/main", body, etag="")
            code = "unreadable_listing" if body in unreadable else "no_lora_file"
            assert "o/m" in refusal(fetcher, "o/m", code)

    def test_a_file_name_with_a_line_break_is_quoted_in_one_line(self, sites: FakeSites, fetcher: Fetcher) -> None:
        self.list_files(sites, "a\nb.safetensors", "c.safetensors")
        assert r"'a\nb.safetensors', c.safetensors" in refusal(fetcher, "o/m", "several_lora_files")

    @pytest.mark.parametrize(
        ("status", "token", "code", "quoted"),
        [
            (401, None, "sign_in_required", "o/m"),
            (401, "hf_x", "token_rejected", "https://huggingface.co/o/m"),
            (403, None, "sign_in_required", "api_token or HF_TOKEN"),
            (403, "hf_x", "token_rejected", "https://huggingface.co/o/m"),
            (404, None, "not_found", "o/m"),
        ],
    )
    def test_a_refusal_says_what_to_do(
        self, status: int, token: str | None, code: str, quoted: str, sites: FakeSites, fetcher: Fetcher
    ) -> None:
        sites.route("huggingface.co", "/o/m/resolve/main/lora.safetensors", lambda e: e.send(b"{}", status))
        sentence = refusal(fetcher, HUB_FILE, code, token)
        assert quoted in sentence
        assert f"status {status}" in sentence
        assert "hf_x" not in sentence

    def list_files(self, sites: FakeSites, *names: str) -> None:
        siblings = [{"rfilename": name, "lfs": {"sha256": SHA256}} for name in names]
        sites.serve("https://huggingface.co/api/models/o/m/revision/main", json.dumps({"siblings": siblings}).encode())


class TestCivitai:
    def test_the_token_is_not_sent_on_to_the_storage(self, sites: FakeSites, fetcher: Fetcher) -> None:
        sites.route("civitai.com", "/api/download/models/202", self.presigned)
        sites.serve("https://storage.example.org/f", LORA)
        assert fetcher.fetch(resolve(CIVITAI_FILE), token="abc").read_bytes() == LORA
        assert [(seen.host, seen.token) for seen in sites.requests] == [
            ("civitai.com", "Bearer abc"),
            ("storage.example.org", ""),
        ]

    def test_a_token_in_the_link_is_sent_as_a_header_instead(self, sites: FakeSites, fetcher: Fetcher) -> None:
        sites.route("civitai.com", "/api/download/models/202", self.presigned)
        sites.serve("https://storage.example.org/f", LORA)
        fetcher.fetch(resolve(f"{CIVITAI_FILE}?token=abc"))
        assert (sites.requests[0].token, sites.requests[0].query) == ("Bearer abc", {})

    def presigned(self, exchange: Exchange) -> None:
        if exchange.headers.get("Authorization") == "Bearer abc":
            exchange.redirect("https://storage.example.org/f?X-Signature=1")
        else:
            exchange.send(b'{"error":"Unauthorized"}', 401, Content_Type="application/json")

    def test_without_a_token_the_refusal_names_the_inputs_for_one(self, sites: FakeSites, fetcher: Fetcher) -> None:
        sites.route("civitai.com", "/api/download/models/202", self.presigned)
        assert "api_token or CIVITAI_TOKEN" in refusal(fetcher, CIVITAI_FILE, "sign_in_required")
        refusal(fetcher, CIVITAI_FILE, "token_rejected", token="wrong")

    def test_a_redirect_to_its_login_page_means_the_same(self, sites: FakeSites, fetcher: Fetcher) -> None:
        sites.route("civitai.com", "/api/download/models/202", lambda e: e.redirect("/login?reason=download-auth", 307))
        assert "api_token or CIVITAI_TOKEN" in refusal(fetcher, CIVITAI_FILE, "sign_in_required")

    def test_a_models_number_in_place_of_a_versions_is_recognised(self, sites: FakeSites, fetcher: Fetcher) -> None:
        sites.route("civitai.com", "/api/download/models/202", lambda e: e.send(b"{}", 404))
        assert "https://civitai.com/models/202" in refusal(fetcher, CIVITAI_FILE, "not_found")

    def test_of_a_bare_model_the_newest_version_is_taken(self, sites: FakeSites, fetcher: Fetcher) -> None:
        versions = [
            self.version(201, "2023-01-01T00:00:00Z", "old.safetensors"),
            self.version(203, "2024-01-01T00:00:00Z", "pickle.pt"),
            self.version(202, "2023-06-01T00:00:00Z", "new.safetensors"),
        ]
        self.describe(sites, {"type": "LORA", "modelVersions": versions})
        sites.serve(CIVITAI_FILE, LORA)
        assert fetcher.fetch(resolve("https://civitai.com/models/101")).read_bytes() == LORA
        assert sites.requests[1].query == {"type": "Model", "format": "SafeTensor"}

    @pytest.mark.parametrize(("base", "number"), [("sd_v1", 202), ("sdxl", 205), ("embedded", 206), ("", 206)])
    def test_of_a_bare_model_the_newest_version_for_this_base_is_taken(
        self, sites: FakeSites, fetcher: Fetcher, base: str, number: int
    ) -> None:
        versions = [
            self.version(201, "2023-01-01T00:00:00Z", "a.safetensors", "SD 1.5"),
            self.version(202, "2023-06-01T00:00:00Z", "b.safetensors", "SD 1.5 LCM"),
            self.version(204, "2024-01-01T00:00:00Z", "c.safetensors", "SDXL 1.0"),
            self.version(205, "2024-02-01T00:00:00Z", "d.safetensors", "Pony"),
            self.version(206, "2024-06-01T00:00:00Z", "e.safetensors", "Flux.1 D"),
        ]
        self.describe(sites, {"type": "LORA", "modelVersions": versions})
        sites.serve(f"https://civitai.com/api/download/models/{number}", LORA)
        for _ in range(2):
            file = fetcher.fetch_file(resolve("https://civitai.com/models/101"), base=base)
            assert file.path.read_bytes() == LORA
            assert ("Flux.1 D" in file.note) == (number != 206)

    def test_a_model_without_a_version_for_this_base_is_refused(self, sites: FakeSites, fetcher: Fetcher) -> None:
        version = self.version(201, "2023-01-01T00:00:00Z", "a.safetensors", "Flux.1 D")
        self.describe(sites, {"type": "LORA", "modelVersions": [version]})
        with raises(LinkError, code="no_version_for_base") as caught:
            fetcher.fetch_file(resolve("https://civitai.com/models/101"), base="sd_v2")
        assert "Flux.1 D" in str(caught.value)

    def version(self, number: int, published: str, name: str, base: str = "SD 1.5") -> dict[str, object]:
        file = {"name": name, "primary": True, "hashes": {"SHA256": SHA256.upper()}}
        return {"id": number, "publishedAt": published, "baseModel": base, "files": [file]}

    def describe(self, sites: FakeSites, model: object) -> None:
        sites.serve("https://civitai.com/api/v1/models/101", json.dumps(model).encode(), etag="")

    def test_a_checkpoint_and_an_empty_model_are_refused(self, sites: FakeSites, fetcher: Fetcher) -> None:
        self.describe(sites, {"type": "Checkpoint", "modelVersions": []})
        refusal(fetcher, "https://civitai.com/models/101", "checkpoint_not_lora")
        for versions in ([{"id": 1, "files": []}], [{"id": 1, "files": 3}], None, 3):
            self.describe(sites, {"type": "LORA", "modelVersions": versions})
            refusal(fetcher, "https://civitai.com/models/101", "no_lora_file")


class TestOthers:
    def test_dropbox_gives_the_file_or_a_page(self, sites: FakeSites, fetcher: Fetcher) -> None:
        def answer(exchange: Exchange) -> None:
            if exchange.query == {"rlkey": "k", "dl": "1"}:
                exchange.file(LORA)
            else:
                exchange.page(200, "Dropbox - a.safetensors")

        sites.route("www.dropbox.com", "/scl/fi/x/a.safetensors", answer)
        assert "Dropbox" in refusal(fetcher, "https://www.dropbox.com/scl/fi/x/a.safetensors", "html_instead_of_file")
        link = "https://www.dropbox.com/scl/fi/x/a.safetensors?rlkey=k&dl=0"
        assert fetcher.fetch(resolve(link)).read_bytes() == LORA

    def test_a_git_lfs_pointer_of_github_is_followed_to_its_content(
        self, sites: FakeSites, fetcher: Fetcher, tmp_path: Path
    ) -> None:
        pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 9\n"
        sites.serve("https://raw.githubusercontent.com/o/r/main/a.safetensors", pointer)
        sites.serve("https://media.githubusercontent.com/media/o/r/main/a.safetensors", LORA)
        link = "https://github.com/o/r/raw/main/a.safetensors"
        for _ in range(2):
            assert fetcher.fetch(resolve(link)).read_bytes() == LORA
        assert len(sites.requests_to("media.githubusercontent.com")) == 1
        assert fetcher.download(resolve(link), tmp_path / "in").read_bytes() == LORA

    def test_a_git_lfs_pointer_elsewhere_is_named(self, sites: FakeSites, fetcher: Fetcher) -> None:
        pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 9\n"
        sites.serve("https://files.example.org/a", pointer)
        refusal(fetcher, "https://files.example.org/a", "git_lfs_pointer")

    @pytest.mark.parametrize("status", [403, 404])
    def test_a_file_that_replicate_has_deleted_is_expired(
        self, status: int, sites: FakeSites, fetcher: Fetcher
    ) -> None:
        sites.route("replicate.delivery", "/pbxt/a", lambda e: e.send(b"", status))
        refusal(fetcher, "https://replicate.delivery/pbxt/a", "expired")

    def test_a_trained_model_of_replicate_leads_to_its_weights_and_the_token_to_its_own_host(
        self, sites: FakeSites, fetcher: Fetcher
    ) -> None:
        version = "0" * 64
        path = f"/someone/model/versions/{version}/_weights"
        sites.serve("https://replicate.delivery/pbxt/trained.safetensors", LORA)
        sites.route("replicate.com", path, lambda e: e.redirect("https://replicate.delivery/pbxt/trained.safetensors"))
        fetched = fetcher.fetch(resolve(f"someone/model:{version}"), token="r8_secret")
        assert fetched.read_bytes() == LORA
        (asked,), (given,) = sites.requests_to("replicate.com"), sites.requests_to("replicate.delivery")
        assert (asked.token, given.token) == ("Bearer r8_secret", "")

    @pytest.mark.parametrize(("status", "code"), [(404, "not_found"), (401, "sign_in_required")])
    def test_a_model_of_replicate_without_trained_weights_is_named(
        self, status: int, code: str, sites: FakeSites, fetcher: Fetcher
    ) -> None:
        sites.route("replicate.com", "/someone/model/_weights", lambda e: e.send(b"", status))
        assert "someone/model" in refusal(fetcher, "https://replicate.com/someone/model", code)

    def test_a_web_page_with_status_200_is_no_file(self, sites: FakeSites, fetcher: Fetcher, tmp_path: Path) -> None:
        link = "https://files.example.org/a"
        sites.route("files.example.org", "/a", lambda e: e.page(200, "Welcome"))
        assert "(“Welcome”)" in refusal(fetcher, link, "html_instead_of_file")
        with raises(LinkError, code="html_instead_of_file"):
            fetcher.download(resolve(link), tmp_path / "in")
        sites.serve(link, b"\n<!DOCTYPE html><html></html>" + b" " * 600)
        assert "web page" in refusal(fetcher, link, "not_a_lora")

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            (b"\x89PNG\r\n\x1a\n" + bytes(600), "picture"),
            (b"PK\x03\x04" + bytes(600), "archive"),
            (b'{"error": "nothing here"}', "JSON"),
            (LORA[:-1], "cut off|ends at byte"),
            (b"", "0 bytes"),
        ],
    )
    def test_another_kind_of_file_is_refused_by_name(
        self, body: bytes, words: str, sites: FakeSites, fetcher: Fetcher
    ) -> None:
        sites.serve("https://files.example.org/a", body)
        sentence = refusal(fetcher, "https://files.example.org/a", "not_a_lora")
        assert "'https://files.example.org/a'" in sentence
        assert any(word in sentence for word in words.split("|"))


def test_an_unchanged_program_fetches_a_drive_link_from_the_environment_alone(sites: FakeSites, tmp_path: Path) -> None:
    """The tests of the whole service rely on it: nothing of the program is replaced, its guard least of all."""
    sites.route(*DRIVE, lambda e: e.file(LORA))
    program = f"""
from lora_service.downloads.fetcher import Fetcher
from lora_service.downloads.resolve import resolve
from lora_service.settings import Settings
print(Fetcher(Settings.from_environment()).fetch(resolve({DRIVE_LINK!r})))
"""
    environment = {**os.environ, **sites.environment(tmp_path), "LORA_CACHE": str(tmp_path / "cache")}
    fetched = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert Path(fetched.stdout.strip()).read_bytes() == LORA
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
    paths = {fetcher.fetch(resolve(link)) for link in ("o/m", "https://huggingface.co/o/m", "o/m")}
    assert len(paths) == 1
    assert len(sites.requests) == 2
