"""Pasted links, one by one. Expected addresses are from the sites' public documentation."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_service.downloads.resolve import resolve, split
from lora_service.downloads.sites.direct_links import decode_data_uri
from lora_service.errors import LinkError
from tests.errors import raises

DRIVE_ID = "1a2B3c4D5e6F7g8H9i0J-_kLmNoPqRsTu"
DRIVE = f"https://drive.usercontent.google.com/download?id={DRIVE_ID}&export=download&confirm=t"
KEYED = f"{DRIVE}&resourcekey=0-AbC_dEf"
HUB = "https://huggingface.co"
VERSION = "0123456789abcdef" * 4
HUB_API = f"{HUB}/api/models"
CIVITAI = "https://civitai.com/api"
RAW = "https://raw.githubusercontent.com"

RESOLVED = [
    # Google Drive
    ("google-drive", f"https://drive.google.com/file/d/{DRIVE_ID}/view?usp=sharing", DRIVE),
    ("google-drive", f"https://drive.google.com/file/d/{DRIVE_ID}/view?usp=drive_link", DRIVE),
    ("google-drive", f"https://drive.google.com/file/d/{DRIVE_ID}/view", DRIVE),
    ("google-drive", f"https://drive.google.com/file/d/{DRIVE_ID}", DRIVE),
    ("google-drive", f"https://drive.google.com/file/d/{DRIVE_ID}/", DRIVE),
    ("google-drive", f"https://drive.google.com/file/d/{DRIVE_ID}/edit", DRIVE),
    ("google-drive", f"https://drive.google.com/file/d/{DRIVE_ID}/preview", DRIVE),
    ("google-drive", f"https://drive.google.com/file/u/0/d/{DRIVE_ID}/view", DRIVE),
    ("google-drive", f"https://drive.google.com/file/u/3/d/{DRIVE_ID}/view?usp=sharing", DRIVE),
    ("google-drive", f"https://drive.google.com/open?id={DRIVE_ID}", DRIVE),
    ("google-drive", f"https://drive.google.com/open?id={DRIVE_ID}&authuser=0&usp=drive_fs", DRIVE),
    ("google-drive", f"https://drive.google.com/uc?id={DRIVE_ID}", DRIVE),
    ("google-drive", f"https://drive.google.com/uc?export=download&id={DRIVE_ID}", DRIVE),
    ("google-drive", f"https://drive.google.com/u/0/uc?id={DRIVE_ID}&export=download", DRIVE),
    ("google-drive", f"https://drive.google.com/a/school.example/uc?id={DRIVE_ID}", DRIVE),
    ("google-drive", f"https://docs.google.com/uc?export=download&id={DRIVE_ID}", DRIVE),
    ("google-drive", f"https://docs.google.com/file/d/{DRIVE_ID}/edit", DRIVE),
    ("google-drive", f"https://docs.google.com/open?id={DRIVE_ID}", DRIVE),
    ("google-drive", f"https://drive.usercontent.google.com/download?id={DRIVE_ID}&export=download&confirm=t", DRIVE),
    ("google-drive", f"https://drive.usercontent.google.com/download?id={DRIVE_ID}&export=download&uuid=1-2", DRIVE),
    ("google-drive", f"https://drive.usercontent.google.com/uc?id={DRIVE_ID}", DRIVE),
    ("google-drive", f"https://drive.google.com/file/d/{DRIVE_ID}/view?usp=sharing&resourcekey=0-AbC_dEf", KEYED),
    ("google-drive", f"https://drive.google.com/open?id={DRIVE_ID}&resourcekey=0-AbC_dEf", KEYED),
    ("google-drive", f"https://drive.google.com/uc?id={DRIVE_ID}&resourcekey=0-AbC_dEf&export=download", KEYED),
    ("google-drive", f"http://drive.google.com/uc?id={DRIVE_ID}", DRIVE),
    ("google-drive", f"drive.google.com/file/d/{DRIVE_ID}/view", DRIVE),
    ("google-drive", f"HTTPS://DRIVE.GOOGLE.COM/file/d/{DRIVE_ID}/view", DRIVE),
    ("google-drive", f"https://drive.google.com/uc?export=download&amp;id={DRIVE_ID}", DRIVE),
    ("google-drive", f"  <https://drive.google.com/open?id={DRIVE_ID}>\n", DRIVE),
    ("google-drive", f"[my lora](https://drive.google.com/open?id={DRIVE_ID})", DRIVE),
    (
        "google-drive",
        f"https://www.google.com/url?q=https%3A%2F%2Fdrive.google.com%2Fopen%3Fid%3D{DRIVE_ID}&sa=D",
        DRIVE,
    ),
    # Hugging Face
    ("hugging-face", f"{HUB}/o/m/blob/main/lora.safetensors", f"{HUB}/o/m/resolve/main/lora.safetensors"),
    ("hugging-face", f"{HUB}/o/m/resolve/main/lora.safetensors", f"{HUB}/o/m/resolve/main/lora.safetensors"),
    ("hugging-face", f"{HUB}/o/m/resolve/main/a.safetensors?download=true", f"{HUB}/o/m/resolve/main/a.safetensors"),
    ("hugging-face", f"{HUB}/o/m/raw/main/a.safetensors", f"{HUB}/o/m/resolve/main/a.safetensors"),
    ("hugging-face", f"{HUB}/o/m/blob/v1.0/d/e/a.safetensors", f"{HUB}/o/m/resolve/v1.0/d/e/a.safetensors"),
    ("hugging-face", f"{HUB}/o/m/blob/refs%2Fpr%2F2/a.safetensors", f"{HUB}/o/m/resolve/refs%2Fpr%2F2/a.safetensors"),
    ("hugging-face", f"{HUB}/o/m/blob/main/my lora.safetensors", f"{HUB}/o/m/resolve/main/my%20lora.safetensors"),
    ("hugging-face", f"{HUB}/o/m/blob/main/my%20lora.safetensors", f"{HUB}/o/m/resolve/main/my%20lora.safetensors"),
    ("hugging-face", f"{HUB}/datasets/o/d/blob/main/a.zip", f"{HUB}/datasets/o/d/resolve/main/a.zip"),
    ("hugging-face", f"{HUB}/o/m", f"{HUB_API}/o/m/revision/main?blobs=true"),
    ("hugging-face", f"{HUB}/o/m/", f"{HUB_API}/o/m/revision/main?blobs=true"),
    ("hugging-face", f"{HUB}/o/m/tree/main", f"{HUB_API}/o/m/revision/main?blobs=true"),
    ("hugging-face", f"{HUB}/o/m/tree/refs%2Fpr%2F2", f"{HUB_API}/o/m/revision/refs%2Fpr%2F2?blobs=true"),
    ("hugging-face", "https://www.huggingface.co/o/m", f"{HUB_API}/o/m/revision/main?blobs=true"),
    ("hugging-face", "https://hf.co/o/m", f"{HUB_API}/o/m/revision/main?blobs=true"),
    ("hugging-face", "huggingface.co/o/m", f"{HUB_API}/o/m/revision/main?blobs=true"),
    ("hugging-face", "owner-1/My_model.v2", f"{HUB_API}/owner-1/My_model.v2/revision/main?blobs=true"),
    ("hugging-face", "o/m/folder/a.safetensors", f"{HUB}/o/m/resolve/main/folder/a.safetensors"),
    ("hugging-face", f"{HUB}/o/m/tree/refs/pr/1", f"{HUB_API}/o/m/revision/refs%2Fpr%2F1?blobs=true"),
    (
        "hugging-face",
        f"{HUB}/o/m/blob/refs/pr/1/d/a.safetensors",
        f"{HUB}/o/m/resolve/refs%2Fpr%2F1/d/a.safetensors",
    ),
    ("hugging-face", "o/m@v1.0", f"{HUB_API}/o/m/revision/v1.0?blobs=true"),
    ("hugging-face", "o/m@refs/pr/1", f"{HUB_API}/o/m/revision/refs%2Fpr%2F1?blobs=true"),
    # Civitai
    ("civitai", "https://civitai.com/models/101@202", f"{CIVITAI}/download/models/202"),
    ("civitai", "https://civitai.com/en/models/101/some-name", f"{CIVITAI}/v1/models/101"),
    ("civitai", "https://civitai.com/zh-CN/models/101?modelVersionId=202", f"{CIVITAI}/download/models/202"),
    ("civitai", "https://www.civitai.green/models/101", f"{CIVITAI}/v1/models/101"),
    (
        "civitai",
        "https://civitai.com/api/download/models/202?fileId=7",
        f"{CIVITAI}/download/models/202?fileId=7",
    ),
    (
        "civitai",
        "https://civitai.com/models/101?modelVersionId=202&fileId=7",
        f"{CIVITAI}/download/models/202?fileId=7",
    ),
    ("civitai", "https://civitai.com/models/101?modelVersionId=202", f"{CIVITAI}/download/models/202"),
    ("civitai", "https://civitai.com/models/101/some-name?modelVersionId=202", f"{CIVITAI}/download/models/202"),
    ("civitai", "https://civitai.com/models/101", f"{CIVITAI}/v1/models/101"),
    ("civitai", "https://civitai.com/models/101/some-name", f"{CIVITAI}/v1/models/101"),
    ("civitai", "https://www.civitai.com/models/101", f"{CIVITAI}/v1/models/101"),
    ("civitai", "https://civitai.com/api/v1/models/101", f"{CIVITAI}/v1/models/101"),
    ("civitai", "https://civitai.com/api/download/models/202", f"{CIVITAI}/download/models/202"),
    (
        "civitai",
        "https://civitai.com/api/download/models/202?type=Model&format=SafeTensor",
        f"{CIVITAI}/download/models/202?type=Model&format=SafeTensor",
    ),
    ("civitai", "https://civitai.com/api/download/models/202?token=SECRET", f"{CIVITAI}/download/models/202"),
    ("civitai", "https://civitai.com/model-versions/202", f"{CIVITAI}/download/models/202"),
    ("civitai", "https://civitai.com/api/v1/model-versions/202", f"{CIVITAI}/download/models/202"),
    ("civitai", "urn:air:sd1:lora:civitai:101@202", f"{CIVITAI}/download/models/202"),
    ("civitai", "urn:air:sd1:lora:civitai:101", f"{CIVITAI}/v1/models/101"),
    # Dropbox
    ("dropbox", "https://www.dropbox.com/s/abc/a.safetensors?dl=0", "https://www.dropbox.com/s/abc/a.safetensors?dl=1"),
    ("dropbox", "https://www.dropbox.com/s/abc/a.safetensors", "https://www.dropbox.com/s/abc/a.safetensors?dl=1"),
    (
        "dropbox",
        "https://www.dropbox.com/scl/fi/abc/a.safetensors?rlkey=k1&st=t1&dl=0",
        "https://www.dropbox.com/scl/fi/abc/a.safetensors?rlkey=k1&dl=1",
    ),
    ("dropbox", "https://dropbox.com/s/abc/a.safetensors?raw=1", "https://www.dropbox.com/s/abc/a.safetensors?dl=1"),
    ("web", "https://dl.dropboxusercontent.com/s/abc/a.bin", "https://dl.dropboxusercontent.com/s/abc/a.bin"),
    # GitHub
    ("github", "https://github.com/o/r/blob/main/a.safetensors", f"{RAW}/o/r/main/a.safetensors"),
    ("github", "https://github.com/o/r/blob/v1/d/a.safetensors?raw=true", f"{RAW}/o/r/v1/d/a.safetensors"),
    ("github", "https://github.com/o/r/raw/main/a.safetensors", f"{RAW}/o/r/main/a.safetensors"),
    (
        "github",
        "https://github.com/o/r/raw/refs/heads/main/a.safetensors",
        f"{RAW}/o/r/refs/heads/main/a.safetensors",
    ),
    ("github", f"{RAW}/o/r/main/a.safetensors", f"{RAW}/o/r/main/a.safetensors"),
    (
        "github",
        "https://github.com/o/r/releases/download/v1/a.safetensors",
        "https://github.com/o/r/releases/download/v1/a.safetensors",
    ),
    (
        "github",
        "https://github.com/o/r/releases/latest/download/a.safetensors",
        "https://github.com/o/r/releases/latest/download/a.safetensors",
    ),
    # Replicate
    ("replicate", "https://replicate.delivery/pbxt/x/a.safetensors", "https://replicate.delivery/pbxt/x/a.safetensors"),
    ("replicate", "https://pbxt.replicate.delivery/x/a.bin", "https://pbxt.replicate.delivery/x/a.bin"),
    ("replicate", "https://replicate.com/someone/model", "https://replicate.com/someone/model/_weights"),
    ("replicate", "replicate:someone/model", "https://replicate.com/someone/model/_weights"),
    ("replicate", f"someone/model:{VERSION}", f"https://replicate.com/someone/model/versions/{VERSION}/_weights"),
    (
        "replicate",
        f"https://replicate.com/someone/model/versions/{VERSION}",
        f"https://replicate.com/someone/model/versions/{VERSION}/_weights",
    ),
    (
        "replicate",
        f"replicate.com/someone/model:{VERSION}",
        f"https://replicate.com/someone/model/versions/{VERSION}/_weights",
    ),
    # anything else
    ("web", "https://example.org/a.safetensors", "https://example.org/a.safetensors"),
    ("web", "http://example.org/a.safetensors", "http://example.org/a.safetensors"),
    ("web", "https://example.org:8443/a?sig=x%2Fy&b=1", "https://example.org:8443/a?sig=x%2Fy&b=1"),
    ("web", "https://example.org/a b.safetensors", "https://example.org/a%20b.safetensors"),
    ("web", "https://bücher.example/ä.safetensors", "https://xn--bcher-kva.example/%C3%A4.safetensors"),
    ("web", "https://example.org:443/a.safetensors#part", "https://example.org/a.safetensors"),
    ("web", "example.org/files/a.safetensors", "https://example.org/files/a.safetensors"),
    ("web", "example.org:8080/a.safetensors", "https://example.org:8080/a.safetensors"),
    # as sentences, lists and chats leave them
    ("web", "https://example.org/a.safetensors,", "https://example.org/a.safetensors"),
    ("web", "(https://example.org/a.safetensors)", "https://example.org/a.safetensors"),
    ("web", "https://example.org/a.safetensors)", "https://example.org/a.safetensors"),
    ("web", "https://example.org/a.safetensors (my dog)", "https://example.org/a.safetensors"),
    ("web", "https://example.org/a_(v2).safetensors", "https://example.org/a_(v2).safetensors"),
    ("web", "https://example.org/a_(v2)", "https://example.org/a_(v2)"),
    ("web", "[a LoRA](https://example.org/a.safetensors),", "https://example.org/a.safetensors"),
    ("web", '[a LoRA](https://example.org/a.safetensors "a title")', "https://example.org/a.safetensors"),
    ("web", "![](<https://example.org/a.safetensors>)", "https://example.org/a.safetensors"),
    ("web", "https://[2606:4700::1111]/a.safetensors", "https://[2606:4700::1111]/a.safetensors"),
]

REFUSED = [
    (f"https://drive.google.com/drive/folders/{DRIVE_ID}?usp=sharing", "folder_link", "Google Drive"),
    (f"https://drive.google.com/drive/u/0/folders/{DRIVE_ID}", "folder_link", "Google Drive"),
    (f"https://drive.google.com/folderview?id={DRIVE_ID}", "folder_link", "Google Drive"),
    ("https://drive.google.com/drive/my-drive", "page_link", "Google Drive"),
    ("https://drive.google.com/file/d/", "page_link", "Google Drive"),
    (f"https://docs.google.com/document/d/{DRIVE_ID}/edit", "page_link", "Google Doc;"),
    (f"https://docs.google.com/spreadsheets/d/{DRIVE_ID}/edit#gid=0", "page_link", "Google Sheet;"),
    (f"https://docs.google.com/presentation/d/{DRIVE_ID}/edit", "page_link", "Google Slides;"),
    ("https://huggingface.co/models?search=lora", "page_link", "Hugging Face"),
    ("https://huggingface.co/someone", "page_link", "Hugging Face"),
    ("https://huggingface.co/docs/diffusers", "page_link", "Hugging Face"),
    ("https://huggingface.co/datasets/o/d", "page_link", "Hugging Face datasets"),
    ("https://huggingface.co/o/m/discussions/3", "page_link", "https://huggingface.co/o/m/discussions/3"),
    ("https://civitai.com/models", "page_link", "https://civitai.com/models/123"),
    ("https://civitai.com/images/77", "page_link", "Civitai"),
    ("https://civitai.com/user/someone/models", "page_link", "Civitai"),
    ("https://www.dropbox.com/sh/abc/def?dl=0", "folder_link", "Dropbox"),
    ("https://www.dropbox.com/scl/fo/abc/h?rlkey=k", "folder_link", "Dropbox"),
    ("https://www.dropbox.com/login", "page_link", "Dropbox"),
    ("https://github.com/o/r", "page_link", "GitHub"),
    ("https://github.com/o/r/tree/main/loras", "page_link", "GitHub"),
    ("https://gist.github.com/someone/abc", "page_link", "Raw"),
    ("https://replicate.com/docs/reference", "page_link", "https://replicate.delivery/"),
    ("https://replicate.com/p/abcdef", "page_link", "owner/name:version"),
    ("https://replicate.com/someone/model/train", "page_link", "owner/name:version"),
    ("someone/model:abc", "not_a_link", "paste"),
    ("ftp://example.org/a.safetensors", "unsupported_scheme", "ftp:"),
    ("file:///etc/passwd", "unsupported_scheme", "file:"),
    ("javascript:alert(1)", "unsupported_scheme", "javascript:"),
    ("s3://bucket/a.safetensors", "unsupported_scheme", "s3:"),
    ("C:\\loras\\a.safetensors", "unsupported_scheme", "C:"),
    ("https://me:pass@example.org/a.safetensors", "credentials_in_link", "https://example.org/a.safetensors"),
    ("https://me@example.org/a.safetensors", "credentials_in_link", "https://example.org/a.safetensors"),
    ("https://example.org\\@10.0.0.1/", "malformed_link", "backslash"),
    ("https://exa\nmple.org/", "malformed_link", "line break"),
    ("https:///a.safetensors", "not_a_link", "https:///a.safetensors"),
    ("https://example.org:99999/a", "malformed_link", "https://example.org:99999/a"),
    ("https://[::1/a", "malformed_link", "https://[::1/a"),
    ("data:application/octet-stream;base64,@@@@", "malformed_data_uri", "data:application/octet-stream;base64"),
    ("data:nothing", "malformed_data_uri", "data:nothing"),
    ("", "empty_link", "Google Drive"),
    ("my lora", "not_a_link", "my lora"),
    ("lora.safetensors", "not_a_link", "lora.safetensors"),
    ("/etc/passwd", "not_a_link", "/etc/passwd"),
    ("./a.safetensors", "not_a_link", "./a.safetensors"),
    ("../o/m", "not_a_link", "../o/m"),
]


@pytest.mark.parametrize(("site", "pasted", "fetched"), RESOLVED, ids=[pasted for _, pasted, _ in RESOLVED])
def test_a_pasted_link_resolves_to_what_is_fetched(site: str, pasted: str, fetched: str) -> None:
    remote = resolve(pasted)
    assert (remote.site, remote.url) == (site, fetched)


@pytest.mark.parametrize(("pasted", "code", "quoted"), REFUSED, ids=[repr(pasted) for pasted, _, _ in REFUSED])
def test_what_leads_to_no_file_is_refused_with_what_to_paste(pasted: str, code: str, quoted: str) -> None:
    with raises(LinkError, code=code) as caught:
        resolve(pasted)
    problem, semicolon, advice = str(caught.value).partition("; ")
    assert quoted in str(caught.value)
    assert problem
    assert semicolon
    assert advice.endswith(".")


def test_the_table_is_as_long_as_the_forms_are_many() -> None:
    assert len({pasted for _, pasted, _ in RESOLVED}) >= 80


def test_a_folder_of_a_repository_narrows_its_listing() -> None:
    assert resolve(f"{HUB}/o/m/tree/main/some%20loras").subfolder == "some loras/"


@pytest.mark.parametrize(
    ("pasted", "headers"),
    [
        ("o/m", ("Authorization",)),
        ("https://civitai.com/models/1", ("Authorization",)),
        ("https://example.org/a", ("Authorization",)),
        ("http://example.org/a", ()),
        (f"https://drive.google.com/open?id={DRIVE_ID}", ()),
        ("https://www.dropbox.com/s/abc/a.safetensors", ()),
        ("https://replicate.delivery/pbxt/x/a.safetensors", ()),
        ("https://replicate.com/someone/model", ("Authorization",)),
    ],
)
def test_a_token_is_only_for_sites_that_take_one_and_never_sent_in_the_clear(
    pasted: str, headers: tuple[str, ...]
) -> None:
    assert resolve(pasted).headers == headers


def test_all_spellings_of_a_link_share_a_cache_key_and_others_do_not() -> None:
    keys = {resolve(pasted).cache_key for site, pasted, fetched in RESOLVED if fetched == DRIVE}
    assert len(keys) == 1
    assert len({resolve(pasted).cache_key for _, pasted, _ in RESOLVED}) == len({url for _, _, url in RESOLVED})


def test_secrets_of_a_link_are_in_no_text_that_is_shown() -> None:
    civitai = resolve("https://civitai.com/api/download/models/2?token=SECRET")
    assert civitai.link_token == "SECRET"
    signed = resolve("https://example.org/a?X-Signature=SECRET")
    for remote in (civitai, signed):
        assert "SECRET" not in remote.link + remote.cache_key
    assert "SECRET" not in repr(civitai)
    with raises(LinkError, code="credentials_in_link") as caught:
        resolve("https://me:SECRET@example.org/a?b=SECRET")
    assert "SECRET" not in str(caught.value)


def test_a_hash_after_the_link_is_what_the_file_must_match() -> None:
    digest = hashlib.sha256(b"x").hexdigest()
    assert resolve(f"https://example.org/a#sha256={digest.upper()}").sha256 == digest


def test_a_data_uri_holds_its_own_bytes() -> None:
    packed = base64.b64encode(b"\x00\xffabc").decode()
    binary = resolve(f"data:application/octet-stream;base64,{packed}")
    assert decode_data_uri(binary) == ("application/octet-stream", b"\x00\xffabc")
    assert decode_data_uri(resolve("data:,a%20b")) == ("", b"a b")
    assert decode_data_uri(resolve("DATA:text/plain;charset=utf-8,a")) == ("text/plain", b"a")


def test_paths_are_for_the_command_line_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "o" / "a.safetensors"
    file.parent.mkdir()
    file.write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    assert resolve(str(file), allow_local=True).local_path == file
    assert resolve("o/a.safetensors", allow_local=True).site == "local"
    with raises(LinkError, code="not_a_link"):
        resolve(str(file))
    with raises(LinkError, code="folder_link"):
        resolve("o", allow_local=True)
    for missing in ("./b.safetensors", "b.safetensors", "o/b.safetensors", "~nobody-of-that-name/b.safetensors"):
        with raises(LinkError, code="no_such_file"):
            resolve(missing, allow_local=True)
    assert resolve("o/m", allow_local=True).site == "hugging-face"
    with raises(LinkError, code="not_a_link"):
        resolve("x" * 5000, allow_local=True)  # longer than any path may be


def test_links_of_one_input_come_as_lines_bars_or_json() -> None:
    assert split("a|b\nc | | d") == ("a", "b", "c", "d")
    assert split(' ["a|b", "c"] ') == ("a|b", "c")
    assert split("") == ()
    for wrong in ("[1]", "[", '["a"'):
        with raises(LinkError, code="malformed_list"):
            split(wrong)


@given(st.one_of(st.text(), st.text().map("https://".__add__), st.sampled_from(RESOLVED).map(lambda row: row[1])))
def test_any_text_resolves_or_is_refused_in_one_sentence(text: str) -> None:
    sentence = ""
    try:
        url = resolve(text).url
    except LinkError as error:
        url, sentence = "https://refused", str(error)
    assert "\n" not in sentence
    assert url.startswith(("https://", "http://", "data:"))
    assert url.startswith("data:") or "@" not in url.split("/")[2]


@given(
    st.from_regex(r"[A-Za-z0-9_-]{6,44}", fullmatch=True),
    st.sampled_from(["/file/d/{}/view", "/open?id={}", "/uc?export=download&id={}", "/file/u/1/d/{}/edit"]),
)
def test_every_drive_number_survives_every_form(file_id: str, form: str) -> None:
    remote = resolve(f"https://drive.google.com{form.format(file_id)}")
    assert remote.url == (f"https://drive.usercontent.google.com/download?id={file_id}&export=download&confirm=t")
