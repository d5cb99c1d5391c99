"""A LoRA in a zip or tar, as sites hand out trainings and people send files."""

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from lora_service.errors import LoraFileError
from lora_service.lora import archive
from lora_service.lora.archive import is_archive, unpack_lora
from lora_service.lora.files import read_lora, write_lora
from lora_service.lora.formats import embedding
from lora_service.lora.safetensors_file import TensorFile, serialize
from lora_service.lora.weights import LoraLayer, LoraWeights
from tests.errors import raises

ROWS = torch.arange(8.0).reshape(2, 4)
WEIGHTS = LoraWeights({"unet": {"mid_block.attentions.0.proj_in": LoraLayer(torch.ones(2, 4), torch.ones(4, 2), 2.0)}})


def lora_bytes(folder: Path) -> bytes:
    write_lora(folder / "made.safetensors", WEIGHTS)
    return (folder / "made.safetensors").read_bytes()


def embeddings_bytes(*keys: str) -> bytes:
    return serialize(dict.fromkeys(keys, ROWS), {}, torch.float32)


def packed(path: Path, files: dict[str, bytes]) -> Path:
    """Write a zip, or a tar as its suffix says."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
            for name, data in files.items():
                opened.writestr(name, data)
        return path
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
def test_the_one_lora_of_an_archive_is_read(tmp_path: Path, name: str) -> None:
    files = {
        "README.txt": b"hello",
        "out/dog.safetensors": lora_bytes(tmp_path),
        "__MACOSX/out/._dog.safetensors": b"x",
    }
    weights = read_lora(packed(tmp_path / name, files))
    assert [path for _, path, _ in weights] == ["mid_block.attentions.0.proj_in"]


@pytest.mark.parametrize(
    ("parameters", "tokens"),
    [({"TOK": "<s0><s1>"}, ("TOK", "TOK_1")), (None, ("<s0>", "<s1>")), ([], ("<s0>", "<s1>"))],
)
def test_the_rows_of_a_trained_model_come_with_its_lora(
    tmp_path: Path, parameters: object, tokens: tuple[str, ...]
) -> None:
    files = {
        "lora.safetensors": lora_bytes(tmp_path),
        "embeddings.pti": embeddings_bytes("text_encoders_0", "text_encoders_1"),
    }
    if parameters is not None:
        files["special_params.json"] = json.dumps(parameters).encode()
    weights = read_lora(packed(tmp_path / "trained_model.tar", files))
    assert weights.tokens == tokens
    for index, token in enumerate(tokens):
        for encoder in ("text_encoder", "text_encoder_2"):
            assert torch.equal(weights.embeddings[token][encoder], ROWS[index])


def test_a_gzip_without_a_time_is_no_safetensors_file(tmp_path: Path) -> None:
    tar = packed(tmp_path / "a.tar", {"lora.safetensors": lora_bytes(tmp_path)})
    path = tmp_path / "a.tgz"
    path.write_bytes(gzip.compress(tar.read_bytes(), mtime=0))
    assert is_archive(path)
    assert read_lora(path).layers


def test_an_embedding_in_an_archive_is_called_by_its_own_name(tmp_path: Path) -> None:
    rows = {"text_encoder": torch.ones(4)}
    file = embedding.write(LoraWeights({}, {"x": rows}))
    data = serialize(TensorFile(file.tensors).tensors, {}, torch.float32)
    assert read_lora(packed(tmp_path / "a.zip", {"easynegative.safetensors": data})).tokens == ("easynegative",)


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({"readme.txt": b"x"}, "no_lora_in_archive"),
        ({"a.safetensors": b"x", "b.safetensors": b"y"}, "several_loras_in_archive"),
        ({f"{number}.txt": b"" for number in range(archive.MAX_MEMBERS + 1)}, "archive_too_large"),
        ({"a.safetensors": bytes(3 * 1024**2)}, "archive_too_large"),
    ],
    ids=["none", "several", "many files", "large"],
)
@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
def test_other_archives_are_refused(tmp_path: Path, files: dict[str, bytes], code: str, name: str) -> None:
    path = packed(tmp_path / name, files)
    folder = tmp_path / "unpacked"
    folder.mkdir()
    with raises(LoraFileError, code=code):
        unpack_lora(path, folder, max_bytes=2 * 1024**2)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.zip", {"a.safetensors": bytes(300 * 1024**2)})
    with raises(LoraFileError, code="archive_too_large"):
        read_lora(path)


def test_a_cut_off_archive_and_a_wrong_file_in_it_are_named(tmp_path: Path) -> None:
    path = packed(tmp_path / "dog.zip", {"a.safetensors": lora_bytes(tmp_path)})
    path.write_bytes(path.read_bytes()[:-30])
    with raises(LoraFileError, code="archive_damaged") as caught:
        read_lora(path)
    assert "dog.zip" in str(caught.value)
    with raises(LoraFileError, code="web_page") as caught:
        read_lora(packed(tmp_path / "dog.zip", {"a.safetensors": b"<!doctype html>" + bytes(100)}), "cat.zip")
    assert "cat.zip: a.safetensors" in str(caught.value)


def test_a_link_in_a_tar_is_not_followed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("lora.safetensors")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    with raises(LoraFileError, code="archive_damaged"):
        read_lora(tmp_path / "a.tar")
