"""The Cog images: files that Cog reads as it does, packages that fit each other, and nothing missing or needless."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from lora_service.models.registry import folder_of
from lora_service.serving.server import CogServer
from tests.small_base import pipeline_of, small_base

ROOT = Path(__file__).resolve().parents[1]
FILES = ("cog.yaml", "cog.train.yaml")

# Cog's pkg/config/config_file.go and its docs/yaml.md. `predict` is the old name of `run`, `python_packages` and
# `pre_install` are deprecated; pre_install runs after the packages, so it cannot choose one.
KEYS = {"build", "image", "model", "run", "train", "concurrency", "environment", "weights"}
BUILD_KEYS = {
    "cuda",
    "cudnn",
    "gpu",
    "python_version",
    "python_requirements",
    "run",
    "sdk_version",
    "system_packages",
}
# Cog's pkg/config/torch_compatibility_matrix.json.
TORCH = "2.11.0"
CUDA_OF_TORCH = {"12.6", "12.8", "12.9", "13.0"}
PYTHON = {"python_version": "3.12", "python_full_version": "3.12.0", "sys_platform": "linux"}
MACHINE = {"platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix", "extra": ""}


def parsed(name: str) -> dict[str, Any]:
    loaded = yaml.safe_load((ROOT / name).read_text())
    assert isinstance(loaded, dict)
    return loaded


def pins(name: str) -> dict[str, str]:
    """Package -> version of a flat file of pins."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), lines
    return dict(line.split("==") for line in lines)


@pytest.mark.parametrize("name", FILES)
def test_every_key_is_one_that_cog_knows(name: str) -> None:
    config = parsed(name)
    assert set(config) <= KEYS
    assert set(config["build"]) <= BUILD_KEYS


@pytest.mark.parametrize("name", FILES)
def test_the_entries_are_there_and_the_environment_is_made_of_assignments(name: str) -> None:
    config = parsed(name)
    for key in ("run", "train"):
        file, _, thing = config[key].partition(":")
        assert re.search(rf"^(class|def) {thing}\b", (ROOT / file).read_text(), re.MULTILINE)
    assert all(re.fullmatch(r"[A-Z_]+=\S+", line) for line in config["environment"])


def test_both_images_are_built_alike() -> None:
    inference, training = map(parsed, FILES)
    assert inference["build"] == training["build"]
    assert inference["environment"] == training["environment"]
    assert (inference["run"], training["run"]) == ("predict.py:Predictor", "train.py:train")


def test_cog_finds_a_cuda_for_the_torch_and_the_python_of_the_images() -> None:
    build = parsed("cog.yaml")["build"]
    assert build["gpu"] is True
    assert pins(build["python_requirements"])["torch"] == TORCH
    assert build["cuda"] in CUDA_OF_TORCH
    assert build["python_version"] in {"3.10", "3.11", "3.12", "3.13", "3.14"}
    assert (3, 11) <= tuple(map(int, build["python_version"].split("."))) < (3, 14)  # pyproject's requires-python


def test_the_images_have_what_is_pinned_for_everyone() -> None:
    everyone, image = pins("requirements.txt"), pins("requirements-image.txt")
    # Cog installs itself, by sdk_version, and takes its own line out of the file with a warning.
    assert everyone.pop("cog") == parsed("cog.yaml")["build"]["sdk_version"]
    assert image.pop("torch") == TORCH
    assert image.pop("bitsandbytes")  # for GPUs alone
    assert image == everyone


def wants() -> Iterator[tuple[str, Requirement]]:
    """Requirements of the pinned packages, on the images' Python."""
    for name in pins("requirements.txt"):
        for text in metadata.requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate(PYTHON | MACHINE):
                yield name, requirement


def test_the_pins_fit_each_other_and_the_images_python() -> None:
    image = pins("requirements-image.txt") | {"cog": pins("requirements.txt")["cog"]}
    known = {name.lower().replace("_", "-"): version for name, version in image.items()}
    for name, version in pins("requirements.txt").items():
        assert metadata.version(name) == version, f"{name}: not what is installed, so nothing is known of it"
        allowed = metadata.metadata(name)["Requires-Python"] or ""
        assert SpecifierSet(allowed).contains(PYTHON["python_full_version"]), name
    for name, wanted in wants():
        pinned = known.get(wanted.name.lower().replace("_", "-"))
        assert pinned is None or wanted.specifier.contains(pinned), f"{name} wants {wanted}, pinned is {pinned}"


def _pattern(line: str) -> re.Pattern[str]:
    """A line of .dockerignore as Docker reads it: from the root, ``*`` within a folder, ``**`` across folders."""
    parts = re.split(r"(\*\*/|\*\*|\*)", line)
    words = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}
    return re.compile("".join(words.get(part, re.escape(part)) for part in parts))


def left_out(path: str) -> bool:
    """Return True if Docker leaves ``path`` out of the build, for itself or for a folder it is in."""
    lines = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith(("#", "!"))
    ]
    places = [path, *(parent.as_posix() for parent in PurePosixPath(path).parents)]
    return any(_pattern(line).fullmatch(place) for line in lines for place in places)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the build copies into the image, of the files of the repository."""
    folder = tmp_path_factory.mktemp("src")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    output = subprocess.run(listed, cwd=ROOT, capture_output=True, check=False)
    if output.returncode:
        pytest.skip("this is no clone, so which files belong to the project is not known")
    for name in output.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file() and not left_out(name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


@pytest.mark.parametrize(
    "path",
    [
        ".git/HEAD",
        ".venv/lib/python3.11/site-packages/torch/__init__.py",
        "build/embedded/unet.pt",
        "lora_service/__pycache__/cli.cpython-311.pyc",
        "models/sd15.part/unet/diffusion_pytorch_model.safetensors",
        "dog.safetensors",
    ],
)
def test_what_lies_about_in_a_working_folder_stays_out_of_the_image(path: str) -> None:
    assert left_out(path)


@pytest.mark.parametrize(
    "path",
    [
        ".cog/tmp/build/requirements.txt",  # Cog refuses to build when its own folder is left out
        "models/owner--name/unet/diffusion_pytorch_model.safetensors",
        "lora_service/models/embedded/unet/diffusion_pytorch_model.safetensors",
    ],
)
def test_what_the_build_and_the_weights_need_is_in_the_image(path: str) -> None:
    assert not left_out(path)


def test_the_image_holds_the_entries_the_package_and_what_cog_reads(image: Path) -> None:
    top = {path.name for path in image.iterdir()}
    assert top == {
        ".dockerignore",
        "LICENSE",
        "cog.train.yaml",
        "cog.yaml",
        "lora_service",
        "predict.py",
        "requirements-image.txt",
        "train.py",
    }


_IMPORT_ALL = """
import importlib, pkgutil, sys
import lora_service
assert lora_service.__file__.startswith(sys.argv[1]), lora_service.__file__
for module in pkgutil.walk_packages(lora_service.__path__, "lora_service."):
    importlib.import_module(module.name)
import train
"""


def test_nothing_that_the_package_imports_was_left_out(image: Path) -> None:
    command = [sys.executable, "-c", _IMPORT_ALL, str(image)]
    ended = subprocess.run(
        command, cwd=image, env={"PATH": "", "PYTHONPATH": str(image)}, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr


def test_the_server_starts_from_what_is_in_the_image_with_weights_at_hand_and_no_hub(
    image: Path, tmp_path: Path
) -> None:
    pipeline_of(small_base()).save_pretrained(folder_of("painter/small", tmp_path))
    nobody = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    environment = {"BASE_MODEL": "painter/small", "MODEL_CACHE": str(tmp_path)} | nobody
    with CogServer("predict", home=image, environment=environment) as server:
        server.wait_ready()
