"""``run.json``: what is trained on what, so that a run can go on without being told again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from lora_service import __version__
from lora_service.dataset.load import TrainingDataset
from lora_service.dataset.training_images import TrainingImage
from lora_service.errors import InputError
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.fingerprint import fingerprint
from lora_service.training.data.class_dataset import ClassPictures
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.inputs.resolved_config import ResolvedConfig
from lora_service.training.runs.run_folder import RunFolder
from lora_service.training.runs.state_file import write_text

FORMAT = 1
"""The version of run.json and of checkpoints; another one is not read."""


@dataclass(frozen=True)
class RunRecord:
    """The record of a run.

    Attributes:
        inputs: as they were given, with the seed.
        identity: what makes the file: the resolved settings, and hashes of pictures, base and ``start_from``.
        pictures: the files or folders that they are in; one in the run folder is relative to it.
        class_data: those with pictures of its class, if they were given.
        output: the file that a command line is to write, "" where it is named at the end.
        save_every, keep: as of :class:`~lora_service.training.runs.run_folder.RunOptions`.
        machine: what the last bits of results depend on.
        status: of the last process that worked on it; one that was killed left it running.
    """

    inputs: Mapping[str, Any]
    identity: Mapping[str, Any]
    pictures: Sequence[str]
    class_data: Sequence[str] = ()
    output: str = ""
    save_every: int | None = 0
    keep: int = 2
    machine: Mapping[str, Any] = field(default_factory=dict)
    status: Literal["running", "stopped", "finished"] = "running"
    format: int = FORMAT
    version: str = __version__

    def write(self, run: RunFolder) -> None:
        """Write it into a run folder."""
        write_text(run.record, json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n")

    def with_status(self, status: Literal["running", "stopped", "finished"]) -> RunRecord:
        """Return it with another status."""
        return replace(self, status=status)

    @staticmethod
    def read(run: RunFolder) -> RunRecord:
        """Read it from a run folder.

        Raises:
            InputError: there is none (code ``no_run``), or it is damaged or of another version (``unreadable_run``).
        """
        if not run.holds_a_run:
            expected = "a run folder: one with a run.json, which train makes beside its LoRA file"
            raise InputError("resume", str(run.path), expected, code="no_run")
        try:
            record = RunRecord(**json.loads(run.record.read_text(encoding="utf-8")))
            if record.format == FORMAT and all(
                isinstance(path, str) for path in (*record.pictures, *record.class_data)
            ):
                return record
            reason = f"it is of the format {record.format}"
        except (ValueError, TypeError, OSError) as error:
            reason = str(error)
        expected = f"the folder of a run of this version, with a run.json that can be read ({reason})"
        raise InputError("resume", str(run.path), expected, code="unreadable_run")

    def config(self) -> TrainConfig:
        """Return the inputs, validated.

        Raises:
            InputError: they are none of this version.
        """
        return TrainConfig.of(self.inputs)

    def source(self, run: RunFolder) -> Path | list[Path]:
        """Return where the pictures are.

        Raises:
            InputError: they are not there any more (code ``pictures_gone``).
        """
        paths = self._existing(self.pictures, run, "; or name the place where they are now")
        return paths if len(paths) > 1 else paths[0]

    def class_source(self, run: RunFolder) -> Path | None:
        """Return where the given class pictures are, None where there are none.

        Raises:
            InputError: they are not there any more (code ``pictures_gone``).
        """
        return next(iter(self._existing(self.class_data, run)), None)

    def _existing(self, stored: Sequence[str], run: RunFolder, otherwise: str = "") -> list[Path]:
        paths = [run.path / path for path in stored]  # an absolute one stays as it is
        for path in paths:
            if not path.exists():
                expected = f"a run whose pictures are where they were, in {path}{otherwise}"
                raise InputError("resume", str(run.path), expected, code="pictures_gone")
        return paths

    def check(self, identity: Mapping[str, Any], run: RunFolder) -> None:
        """Check that what is to go on is what was begun.

        Raises:
            InputError: pictures, base, settings or ``start_from`` are others by now (codes ``pictures_changed``,
                ``base_changed``, ``settings_changed``, ``start_from_changed``).
        """
        for name in ("base", "pictures", "start_from", "settings"):
            if identity[name] != self.identity.get(name):
                then, now = self.identity.get(name), identity[name]
                expected = f"a run of the same {name.replace('_', ' ')} as when it began{_difference(then, now)}"
                raise InputError("resume", str(run.path), expected, code=f"{name}_changed")


def _difference(then: object, now: object) -> str:
    if not isinstance(then, Mapping) or not isinstance(now, Mapping):
        return ""
    names = [name for name in now if now[name] != then.get(name)]
    return "; others now: " + ", ".join(f"{name} {now[name]!r}, then {then.get(name)!r}" for name in names[:3])


def identity_of(
    resolved: ResolvedConfig,
    pictures: tuple[TrainingDataset, ClassPictures],
    base: DiffusionBase,
    start_from: str,
) -> dict[str, Any]:
    """Return what makes a run's file: as JSON, to be compared.

    Args:
        pictures: those of the subject and of its class; what the base drew follows from the base and the settings.
        start_from: the hash of that LoRA.
    """
    dataset, of_class = pictures
    settings = resolved.config.model_dump(exclude={"start_from"}) | {"tokens": list(resolved.tokens)}
    return {
        "settings": json.loads(json.dumps(settings)),
        "pictures": _images_hash((*dataset.images, *(() if of_class.are_drawn else of_class.images))),
        "base": {"name": base.name, "weights": fingerprint(base)},
        "start_from": start_from,
    }


def machine_of(base: DiffusionBase) -> dict[str, Any]:
    """Return what the last bits of a training's numbers depend on besides its inputs."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(base.device) if base.device.type == "cuda" else base.device.type,
    }


def _images_hash(images: Sequence[TrainingImage]) -> str:
    """Return the hash of the pictures as they are trained on: pixels, masks, captions and crops."""
    total = hashlib.sha256()
    for each in images:
        facts = (each.name, each.captions, each.crop, each.original, each.repeats, each.image.mode, each.image.size)
        total.update(json.dumps(facts).encode())
        total.update(each.image.tobytes())
        total.update(b"" if each.mask is None else each.mask.tobytes())
    return total.hexdigest()


def stored_paths(source: Path | Sequence[Path], run: RunFolder) -> list[str]:
    """Return the paths of the pictures as a record has them: absolute, but relative within the run folder."""
    paths = [path.resolve() for path in ([source] if isinstance(source, Path) else source)]
    folder = run.path.resolve()
    return [str(path.relative_to(folder) if path.is_relative_to(folder) else path) for path in paths]
