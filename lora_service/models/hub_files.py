"""Which files of a hub repository make up a Stable Diffusion, and whether a file on the disk is the hub's."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lora_service.errors import BaseModelError
from lora_service.models.defaults import FILE_NAME

INDEX = "model_index.json"
"""diffusers' list of a model's parts."""

_REQUIRED = ("scheduler", "tokenizer", "text_encoder", "unet", "vae")
_COMPONENTS = (*_REQUIRED, "tokenizer_2", "text_encoder_2")
_WITHOUT_WEIGHTS = ("scheduler", "tokenizer", "tokenizer_2")
_WEIGHTS = r"(?:model|diffusion_pytorch_model)"
_CHOICES = (rf"{_WEIGHTS}\.fp16\.safetensors", rf"{_WEIGHTS}\.safetensors", rf"{_WEIGHTS}-\d+-of-\d+\.safetensors")
"""Half precision is preferred: half the bytes, and what an image is drawn with on a GPU anyway. Shards come last."""


@dataclass(frozen=True)
class HubFile:
    """One file of a repository.

    Attributes:
        path: in the repository.
        size: in bytes.
        git_hash: git's name of the content: SHA-1 over a short header and the bytes.
        sha256: of the bytes, for files in LFS; '' for the others, which are small.
    """

    path: str
    size: int
    git_hash: str = ""
    sha256: str = ""

    @property
    def kept_as(self) -> str:
        """Its path in our folder: without the variant, so that any tool loads the folder without naming one."""
        return self.path.replace(".fp16.", ".")

    @property
    def fingerprint(self) -> str:
        """What tells this content from that of another revision."""
        return (self.sha256 or self.git_hash)[:16]

    def matches(self, path: Path) -> bool:
        """Whether the bytes at ``path`` are those that the hub's hash was made of."""
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        if self.sha256:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == self.sha256
        content = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == self.git_hash


def select_files(hub_id: str, files: Iterable[HubFile]) -> list[HubFile]:
    """The files to load a model from: configurations, tokenizers, schedule, and one set of safetensors a part.

    Raises:
        BaseModelError: the repository holds no Stable Diffusion in diffusers' layout, or only pickled weights.
    """
    there = {file.path: file for file in files}
    if INDEX not in there:
        raise BaseModelError(
            f"{hub_id!r} has no {INDEX}, so it is no model in diffusers' layout; choose a repository that has one, "
            "or download its single .safetensors file and name that as BASE_MODEL."
        )
    chosen = [there[name] for name in (INDEX, FILE_NAME) if name in there]
    for part in _COMPONENTS:
        of_part = [file for file in there.values() if PurePosixPath(file.path).parent.as_posix() == part]
        if of_part:
            chosen += _of_component(hub_id, part, of_part)
        elif part in _REQUIRED:
            raise BaseModelError(f"{hub_id!r} has no {part!r}, so it is no Stable Diffusion; choose another model.")
    return chosen


def _of_component(hub_id: str, part: str, files: list[HubFile]) -> list[HubFile]:
    by_name = {PurePosixPath(file.path).name: file for file in files}
    plain = [f for name, f in by_name.items() if name.endswith((".json", ".txt")) and ".index." not in name]
    if part in _WITHOUT_WEIGHTS:
        return plain
    for choice in _CHOICES:
        weights = [file for name, file in by_name.items() if re.fullmatch(choice, name)]
        if weights:
            indexed = len(weights) > 1
            return [*plain, *weights, *(f for name, f in by_name.items() if indexed and _is_shard_index(name))]
    raise BaseModelError(
        f"{hub_id!r} has no .safetensors weights of its {part}, and others are not loaded; choose a revision or a "
        "model that has them."
    )


def _is_shard_index(name: str) -> bool:
    return re.fullmatch(rf"{_WEIGHTS}\.safetensors\.index\.json", name) is not None


def leave_out_the_rest(index: Path) -> None:
    """Say in ``model_index.json`` that the parts that were not fetched (the safety checker) are not there.

    The folder then loads without options, in any tool.

    Raises:
        BaseModelError: it lists no parts.
    """
    try:
        parts = json.loads(index.read_text(encoding="utf-8"))
    except ValueError:
        parts = None
    if not isinstance(parts, dict):
        raise BaseModelError(f"{str(index)!r} is no JSON object of a model's parts; choose another model or revision.")
    for name, value in parts.items():
        if isinstance(value, list) and name not in _COMPONENTS:
            parts[name] = [None, None]
    if "requires_safety_checker" in parts:
        parts["requires_safety_checker"] = False
    index.write_text(json.dumps(parts, indent=2) + "\n", encoding="utf-8")
