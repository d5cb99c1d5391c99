"""The files of a hub repository that make up a base, with their sizes and hashes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lora_service.errors import BaseModelError
from lora_service.models.defaults import DEFAULTS_FILE
from lora_service.models.registry import FAMILIES, INDEX

CONFIG = "config.json"
SAFETY_CHECKER_FOLDERS = ("safety_checker", "feature_extractor")
"""Folders of a Stable Diffusion with the safety checker and its preprocessing."""

_BACKBONES = tuple(dict.fromkeys(family.backbone for family in FAMILIES))
_REQUIRED = ("scheduler", "tokenizer", "text_encoder", "vae")
_WITHOUT_WEIGHTS = ("scheduler", "tokenizer", "tokenizer_2", "tokenizer_3")
_COMPONENTS = (
    *("scheduler", "tokenizer", "text_encoder", *_BACKBONES, "vae"),
    *("tokenizer_2", "text_encoder_2", "tokenizer_3", "text_encoder_3"),
)
_CONFIGS = (".json", ".txt", ".jinja", ".model")
"""Ends of the names of configurations and tokenizers: ``.jinja`` are chat templates, ``.model`` SentencePiece's."""
_WEIGHTS = r"(?:model|diffusion_pytorch_model)"
_PREFERENCE = (
    rf"{_WEIGHTS}\.fp16\.safetensors",
    rf"{_WEIGHTS}\.safetensors",
    rf"{_WEIGHTS}-\d+-of-\d+\.safetensors",
)
"""Names of weights, best first. Half precision is half the bytes, and a GPU generates images in it anyway."""
_PICKLED = rf"{_WEIGHTS}\.bin"


@dataclass(frozen=True)
class HubFile:
    """One file of a repository.

    Attributes:
        path: its path in the repository.
        size: its bytes.
        blob_id: git's hash of the content: SHA-1 of a short header and the bytes.
        sha256: SHA-256 of the bytes, for files in LFS; '' for the others, which are small.
    """

    path: str
    size: int
    blob_id: str = ""
    sha256: str = ""

    @property
    def local_path(self) -> str:
        """Its path in the downloaded folder: without ``.fp16``, so that any tool loads it without a ``variant``."""
        return self.path.replace(".fp16.", ".")

    @property
    def fingerprint(self) -> str:
        """A short hash of the content, which another revision's file does not share."""
        return (self.sha256 or self.blob_id)[:16]

    def matches(self, path: Path) -> bool:
        """Return True when the file at ``path`` has the size and the hash of the hub's."""
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        if self.sha256:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == self.sha256
        content = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == self.blob_id


def select_files(hub_id: str, files: Iterable[HubFile]) -> list[HubFile]:
    """Select the files to load a model from: configurations, tokenizers, and one set of safetensors per component.

    Raises:
        BaseModelError: the repository holds no base in diffusers' layout, or only pickled weights.
    """
    by_path = {file.path: file for file in files}
    if INDEX not in by_path:
        raise BaseModelError(
            f"{hub_id!r} has no {INDEX}, so it is no model in diffusers' layout; choose a repository that has one, "
            "or download its single .safetensors file and name that as BASE_MODEL.",
            code="unsupported_layout",
        )
    selected = [by_path[name] for name in (INDEX, DEFAULTS_FILE) if name in by_path]
    for component in _COMPONENTS:
        component_files = [file for file in by_path.values() if PurePosixPath(file.path).parent.as_posix() == component]
        if component_files:
            selected += _select_component_files(hub_id, component, component_files)
        elif component in _REQUIRED:
            raise BaseModelError(
                f"{hub_id!r} has no {component!r}, so it is no base model; choose another one.",
                code="unsupported_model",
            )
    if not any(file.path.startswith(f"{backbone}/") for file in selected for backbone in _BACKBONES):
        missing = " or ".join(map(repr, _BACKBONES))
        raise BaseModelError(
            f"{hub_id!r} has no {missing}, so it is no base model; choose another one.", code="unsupported_model"
        )
    return selected


def select_adapter(hub_id: str, files: Iterable[HubFile]) -> list[HubFile]:
    """Select the files of a repository that is one model, a ControlNet or T2I-Adapter.

    Those of Stable Diffusion 1.x are mostly pickled; they are taken where there are no others.

    Raises:
        BaseModelError: it is no such repository, or has no weights.
    """
    in_root = [file for file in files if "/" not in file.path]
    if not any(file.path == CONFIG for file in in_root):
        raise BaseModelError(f"{hub_id!r} has no {CONFIG}, so it is no model in diffusers' layout.", code="not_a_model")
    return _select_component_files(hub_id, "model", in_root, (*_PREFERENCE, _PICKLED))


def select_safety_checker(hub_id: str, files: Iterable[HubFile]) -> list[HubFile]:
    """Select the safety checker and its preprocessing of a repository of it alone, or of a Stable Diffusion.

    Raises:
        BaseModelError: it has none, or only pickled weights.
    """
    files = list(files)
    if not any(file.path == INDEX for file in files):
        return select_adapter(hub_id, files)
    selected = []
    for folder in SAFETY_CHECKER_FOLDERS:
        inside = [file for file in files if PurePosixPath(file.path).parent.as_posix() == folder]
        if not inside:
            raise BaseModelError(f"{hub_id!r} has no {folder!r}; choose another repository.", code="not_a_model")
        has_weights = folder == SAFETY_CHECKER_FOLDERS[0]
        selected += _select_component_files(hub_id, folder, inside) if has_weights else inside
    return selected


def _select_component_files(
    hub_id: str, component: str, files: list[HubFile], preference: Sequence[str] = _PREFERENCE
) -> list[HubFile]:
    by_name = {PurePosixPath(file.path).name: file for file in files}
    configs = [f for name, f in by_name.items() if name.endswith(_CONFIGS) and ".index." not in name]
    if component in _WITHOUT_WEIGHTS:
        return configs
    for pattern in preference:
        weights = [file for name, file in by_name.items() if re.fullmatch(pattern, name)]
        if weights:
            sharded = len(weights) > 1
            return [*configs, *weights, *(f for name, f in by_name.items() if sharded and _is_shard_index(name))]
    raise BaseModelError(
        f"{hub_id!r} has no .safetensors weights of its {component}, and others are not loaded; choose a revision or a "
        "model that has them.",
        code="no_safetensors",
    )


def _is_shard_index(name: str) -> bool:
    return re.fullmatch(rf"{_WEIGHTS}\.safetensors\.index\.json", name) is not None


def remove_unselected_components(index: Path) -> None:
    """Set the components that are not downloaded, like the safety checker, to none in a ``model_index.json``.

    The folder then loads without options, in any tool.

    Raises:
        BaseModelError: the file is no JSON object.
    """
    try:
        components = json.loads(index.read_text(encoding="utf-8"))
    except ValueError:
        components = None
    if not isinstance(components, dict):
        raise BaseModelError(
            f"{str(index)!r} is no JSON object of a model's components; choose another model or revision.",
            code="unreadable_model",
        )
    for name, value in components.items():
        if isinstance(value, list) and name not in _COMPONENTS:
            components[name] = [None, None]
    if "requires_safety_checker" in components:
        components["requires_safety_checker"] = False
    index.write_text(json.dumps(components, indent=2) + "\n", encoding="utf-8")
