"""Fetches a base model from the hub: the files that are needed, checked against its hashes, whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_service.errors import BaseModelError, InputError
from lora_service.models.defaults import ModelDefaults
from lora_service.models.hub_files import INDEX, HubFile, leave_out_the_rest, select_files
from lora_service.models.registry import REGISTRY, folder_of, locate
from lora_service.settings import Settings

if TYPE_CHECKING:
    from huggingface_hub import HfApi

RECEIPT = "hub.json"
"""Beside the weights: which model, revision and commit they are."""

_SECONDS = 30.0
_AGAIN = "run the same again: it goes on where it stopped"


@dataclass(frozen=True)
class HubRef:
    """A model on the hub.

    Attributes:
        hub_id: ``owner/name``.
        revision: a branch, tag or commit; '' is the main branch.
    """

    hub_id: str
    revision: str = ""

    @staticmethod
    def parse(name: str) -> HubRef:
        """What ``sd15``, ``owner/name`` or either with ``@revision`` means.

        Raises:
            InputError: it can be no model on the hub.
        """
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # exported lazily

        plain, _, revision = name.partition("@")
        hub_id = REGISTRY[plain].hub_id if plain in REGISTRY else plain
        with contextlib.suppress(HFValidationError):
            validate_repo_id(hub_id)
            if "/" in hub_id:
                return HubRef(hub_id, revision)
        raise InputError("the base model", name, f"{', '.join(REGISTRY)} or a hub id, like owner/name or owner/name@v1")


def ensure_local(settings: Settings) -> tuple[Path, ModelDefaults | None]:
    """The folder or file of ``BASE_MODEL``, fetched first where it is on the hub and not here yet; and its recipe.

    Raises:
        BaseModelError: there is no such base, or it cannot be fetched.
    """
    name = settings.base_model
    path, defaults = locate(name, settings.model_cache)
    if path is not None:
        return path, defaults
    folder = download_base(name, settings)
    return folder, locate(name, settings.model_cache)[1]


def download_base(name: str, settings: Settings, *, to: Path | None = None, log: Callable[[str], None] = print) -> Path:
    """Fetch a model into a folder in diffusers' layout, if it is not there yet.

    What was fetched before an interruption is gone on with. The folder appears
    when all of it is there and has the hub's hashes.

    Args:
        name: a short name or a hub id, either with ``@revision``.
        settings: where models are kept, and the token and address of the hub.
        to: the folder, in place of the one where ``BASE_MODEL=name`` finds it.
        log: called with a line for each file.

    Returns:
        The folder.

    Raises:
        InputError: ``name`` is no model on the hub, or ``to`` holds something else.
        BaseModelError: it cannot be fetched.
    """
    from filelock import FileLock

    wanted = HubRef.parse(name)
    folder = _absolute(to) if to else folder_of(name, settings.model_cache).absolute()
    with _explained(wanted, folder):
        if _is_there(wanted, folder):
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f".{folder.name}.lock")
        with FileLock(lock):  # a second process waits, and finds the folder there
            if not _is_there(wanted, folder):
                _Download(wanted, folder, settings, log).run()
            lock.unlink(missing_ok=True)
    return folder


def _absolute(to: Path) -> Path:
    """The folder of ``--to`` with a name to put a lock beside, which "." has not, and with its ~ resolved."""
    try:
        return to.expanduser().absolute()
    except RuntimeError as error:
        raise InputError("--to", str(to), "a folder under a home that exists, like ~/models") from error


def _is_there(wanted: HubRef, folder: Path) -> bool:
    """Whether ``folder`` holds the model already.

    Raises:
        InputError: it holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        receipt = json.loads((folder / RECEIPT).read_text(encoding="utf-8"))
        if (receipt["id"], receipt["revision"]) == (wanted.hub_id, wanted.revision):
            return True
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no receipt of ours, so no model of ours
    raise InputError("--to", str(folder), f"a new or empty folder, or one that {wanted.hub_id} was downloaded to")


@dataclass(frozen=True)
class _Download:
    """One model on its way into a folder, whose name it has with ``.part`` until it is whole."""

    wanted: HubRef
    folder: Path
    settings: Settings
    log: Callable[[str], None]

    def run(self) -> None:
        from huggingface_hub import HfApi

        endpoint, token = self.settings.hf_endpoint.rstrip("/"), self.settings.hf_token.get_secret_value()
        api = HfApi(endpoint=endpoint or None, token=token or None)
        commit, listing = _listing(api, self.wanted)
        files = select_files(self.wanted.hub_id, listing)
        left = [file for file in files if not file.matches(self._part / file.kept_as)]
        self._check_room(sum(file.size for file in left))
        for number, file in enumerate(left, len(files) - len(left) + 1):
            self.log(f"{self.wanted.hub_id}: {file.path}, {file.size / 1e6:.1f} MB ({number} of {len(files)})")
            self._fetch(file, api, commit)
        self._finish(commit, files)

    @property
    def _part(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.part")

    def _check_room(self, size: int) -> None:
        self._part.mkdir(exist_ok=True)
        free = shutil.disk_usage(self._part).free
        if size > free:
            raise OSError(errno.ENOSPC, f"{size / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free")

    def _fetch(self, file: HubFile, api: HfApi, commit: str) -> None:
        """Fetch the rest of one file; it gets its name when its hash is the hub's."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # exported lazily

        target = self._part / file.kept_as
        target.parent.mkdir(exist_ok=True)
        # The hub client's own downloads begin again after an interruption, so only its transfer is used.
        unfinished = target.with_name(f"{target.name}.{file.fingerprint}.part")
        with unfinished.open("ab") as stream:
            if stream.tell() > file.size:
                stream.truncate(0)
            http_get(
                hf_hub_url(self.wanted.hub_id, file.path, revision=commit, endpoint=api.endpoint),
                stream,
                resume_size=stream.tell(),
                headers=build_hf_headers(token=api.token),
                expected_size=file.size,
                displayed_filename=file.path,
            )
        if not file.matches(unfinished):
            unfinished.unlink()
            raise BaseModelError(
                f"{file.path!r} of {self.wanted.hub_id} did not arrive as the hub has it (its hash differs), and was "
                "thrown away; run the same again."
            )
        unfinished.replace(target)

    def _finish(self, commit: str, files: list[HubFile]) -> None:
        wanted_paths = {self._part / file.kept_as for file in files}
        for path in self._part.rglob("*"):
            if path.is_file() and path not in wanted_paths:
                path.unlink()  # of a revision that was begun before
        leave_out_the_rest(self._part / INDEX)
        receipt = {"id": self.wanted.hub_id, "revision": self.wanted.revision, "commit": commit}
        (self._part / RECEIPT).write_text(json.dumps(receipt, indent=2) + "\n", encoding="utf-8")
        self._part.replace(self.folder)


def _listing(api: HfApi, wanted: HubRef) -> tuple[str, list[HubFile]]:
    """The commit that a revision stands for now, and the repository's files."""
    try:
        info = api.model_info(wanted.hub_id, revision=wanted.revision or None, files_metadata=True, timeout=_SECONDS)
    except (ValueError, KeyError, TypeError) as error:
        raise BaseModelError(
            f"{api.endpoint} cannot be asked for {wanted.hub_id}, or does not answer as a hub does ({error}); check "
            "HF_ENDPOINT and HF_TOKEN."
        ) from error
    files = [
        HubFile(s.rfilename, s.size or 0, s.blob_id or "", s.lfs.sha256 if s.lfs else "") for s in info.siblings or ()
    ]
    return str(info.sha), files


@contextlib.contextmanager
def _explained(wanted: HubRef, folder: Path) -> Iterator[None]:
    """What the hub's client and the disk raise, as one sentence."""
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except errors.HfHubHTTPError as error:
        raise BaseModelError(_refusal(wanted, error)) from error
    except errors.OfflineModeIsEnabled as error:
        raise BaseModelError(
            f"{wanted.hub_id} cannot be downloaded because HF_HUB_OFFLINE is set; unset it for this."
        ) from error
    except httpx2.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise BaseModelError(
            f"The hub does not answer or broke off while {wanted.hub_id} was fetched ({reason}); {_AGAIN}."
        ) from error
    except OSError as error:
        raise BaseModelError(_trouble(wanted, folder, error)) from error


def _refusal(wanted: HubRef, error: Exception) -> str:
    """What a status of the hub means for the person who asked."""
    from huggingface_hub import errors

    hub_id = wanted.hub_id
    if isinstance(error, errors.GatedRepoError):
        return f"{hub_id!r} is gated: accept its terms on its page, then set HF_TOKEN to a token of that account."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"The hub knows no model {hub_id!r}, or it is private: check the spelling, or set HF_TOKEN."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{hub_id!r} has no revision {wanted.revision!r}; give a branch, a tag or a commit of it, or none."
    status = getattr(getattr(error, "response", None), "status_code", "unknown")
    return f"The hub answers with status {status} to the download of {hub_id}; later, {_AGAIN}."


def _trouble(wanted: HubRef, folder: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"There is no room for {wanted.hub_id} in {str(folder.parent)!r} ({error.strerror}); make room or set "
            f"MODEL_CACHE to another disk, then {_AGAIN}."
        )
    if error.errno is None:  # the hub's client found another length than announced
        return f"A file of {wanted.hub_id} did not arrive whole; {_AGAIN}."
    return f"{str(folder)!r} cannot be written ({error.strerror}); give --to another folder, or set MODEL_CACHE."
