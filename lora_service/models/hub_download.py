"""Downloads a base model from the hub: the files it is loaded from, checked against the hub's hashes, resumable."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_service.errors import BaseModelError, InputError
from lora_service.models.defaults import ModelDefaults
from lora_service.models.hub_files import HubFile, remove_unselected_components, select_files
from lora_service.models.registry import INDEX, REGISTRY, folder_of, locate
from lora_service.settings import Settings

if TYPE_CHECKING:
    from huggingface_hub import HfApi

RECEIPT = "hub.json"
"""Name of the file beside the weights with the model's hub id, revision and commit."""

SelectFiles = Callable[[str, Iterable[HubFile]], list[HubFile]]
"""Selects the files to download, by the hub id and the repository's files; raises BaseModelError."""

_TIMEOUT = 30.0  # seconds
_RETRY = "run the same again: it continues where it stopped"


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
        """Parse ``sd15`` or another short name, or ``owner/name``; either may end in ``@revision``.

        Raises:
            InputError: it is no short name and no id of the hub.
        """
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # exported lazily

        short_name, _, revision = name.partition("@")
        hub_id = REGISTRY[short_name].hub_id if short_name in REGISTRY else short_name
        with contextlib.suppress(HFValidationError):
            validate_repo_id(hub_id)
            if "/" in hub_id:
                return HubRef(hub_id, revision)
        raise InputError("the base model", name, f"{', '.join(REGISTRY)} or a hub id, like owner/name or owner/name@v1")


def ensure_local(settings: Settings) -> tuple[Path, ModelDefaults | None]:
    """Return the folder or file of ``BASE_MODEL`` and its defaults; a model of the hub is downloaded if necessary.

    Raises:
        BaseModelError: there is no such base, or it cannot be downloaded.
    """
    name = settings.base_model
    path, defaults = locate(name, settings.model_cache)
    if path is not None:
        return path, defaults
    folder = download_base(name, settings)
    return folder, locate(name, settings.model_cache)[1]


def download_base(
    name: str,
    settings: Settings,
    *,
    to: Path | None = None,
    log: Callable[[str], None] = print,
    select: SelectFiles = select_files,
) -> Path:
    """Download a model into a folder in diffusers' layout, unless it is there already.

    An interrupted download is continued. The folder appears when all files are there and have the hub's hashes.

    Args:
        name: a short name or a hub id, either with ``@revision``.
        settings: the folder that models are kept in, and the address and token of the hub.
        to: the folder, in place of the one that ``BASE_MODEL=name`` is read from.
        log: called with a line for each file.
        select: selects the files; those of a base model, unless given.

    Returns:
        The folder.

    Raises:
        InputError: ``name`` is no model of the hub, or ``to`` holds other files.
        BaseModelError: it cannot be downloaded.
    """
    from filelock import FileLock

    ref = HubRef.parse(name)
    folder = _absolute(to) if to else folder_of(name, settings.model_cache).absolute()
    with _translated_errors(ref, folder):
        if _is_downloaded(ref, folder):
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f".{folder.name}.lock")
        with FileLock(lock):  # a second process waits here until the folder is complete
            if not _is_downloaded(ref, folder):
                _Download(ref, folder, settings, log, select).run()
            lock.unlink(missing_ok=True)
    return folder


def _absolute(to: Path) -> Path:
    """Resolve ``~`` and ".", as the lock and the unfinished download lie beside the folder, under its name."""
    try:
        return to.expanduser().absolute()
    except RuntimeError as error:
        raise InputError("--to", str(to), "a folder under a home that exists, like ~/models") from error


def _is_downloaded(ref: HubRef, folder: Path) -> bool:
    """Return True when ``folder`` holds the model, False when it is empty or does not exist.

    Raises:
        InputError: it holds other files.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        receipt = json.loads((folder / RECEIPT).read_text(encoding="utf-8"))
        if (receipt["id"], receipt["revision"]) == (ref.hub_id, ref.revision):
            return True
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no receipt, so no download of ours
    raise InputError("--to", str(folder), f"a new or empty folder, or one that {ref.hub_id} was downloaded to")


def local_folder(where: str, settings: Settings, kind: str, select: SelectFiles) -> Path:
    """Return the folder of a model that is no base; one on the hub is downloaded first.

    Args:
        where: a folder, or a hub id, ``owner/name`` or ``owner/name@revision``.
        settings: the folder that models are kept in, and the address and token of the hub.
        kind: the beginning of the name of the folder that it is downloaded to.
        select: selects its files.

    Raises:
        InputError: it is neither.
        BaseModelError: it cannot be downloaded.
    """
    with contextlib.suppress(OSError, RuntimeError):  # too long for a path, or the home of a user who does not exist
        path = Path(where).expanduser()
        if path.is_dir():
            return path
    folder = folder_of(where, settings.model_cache)
    return download_base(where, settings, to=folder.with_name(f"{kind}--{folder.name}"), select=select)


@dataclass(frozen=True)
class _Download:
    """The download of one model; its folder is named with ``.part`` at the end until it is complete."""

    ref: HubRef
    folder: Path
    settings: Settings
    log: Callable[[str], None]
    select: SelectFiles

    def run(self) -> None:
        from huggingface_hub import HfApi

        endpoint, token = self.settings.hf_endpoint, self.settings.hf_token.get_secret_value()
        api = HfApi(endpoint=endpoint or None, token=token or None)
        commit, repository_files = _list_files(api, self.ref)
        files = self.select(self.ref.hub_id, repository_files)
        missing = [file for file in files if not file.matches(self._part / file.local_path)]
        self._check_disk_space(sum(file.size for file in missing))
        for number, file in enumerate(missing, len(files) - len(missing) + 1):
            self.log(f"{self.ref.hub_id}: {file.path}, {file.size / 1e6:.1f} MB ({number} of {len(files)})")
            self._download_file(file, api, commit)
        self._finish(commit, files)

    @property
    def _part(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.part")

    def _check_disk_space(self, size: int) -> None:
        self._part.mkdir(exist_ok=True)
        free = shutil.disk_usage(self._part).free
        if size > free:
            raise OSError(errno.ENOSPC, f"{size / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free")

    def _download_file(self, file: HubFile, api: HfApi, commit: str) -> None:
        """Download the missing bytes of one file; it is renamed to its own name once its hash is the hub's."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # exported lazily

        target = self._part / file.local_path
        target.parent.mkdir(exist_ok=True)
        # The hub client's own downloads start over after an interruption, so only its transfer is used.
        unfinished = target.with_name(f"{target.name}.{file.fingerprint}.part")
        with unfinished.open("ab") as stream:
            if stream.tell() > file.size:
                stream.truncate(0)
            http_get(
                hf_hub_url(self.ref.hub_id, file.path, revision=commit, endpoint=api.endpoint),
                stream,
                resume_size=stream.tell(),
                headers=build_hf_headers(token=api.token),
                expected_size=file.size,
                displayed_filename=file.path,
            )
        if not file.matches(unfinished):
            unfinished.unlink()
            raise BaseModelError(
                f"{file.path!r} of {self.ref.hub_id} did not arrive as the hub has it (its hash differs) and was "
                "deleted; run the same again.",
                code="hash_mismatch",
            )
        unfinished.replace(target)

    def _finish(self, commit: str, files: list[HubFile]) -> None:
        expected = {self._part / file.local_path for file in files}
        for path in self._part.rglob("*"):
            if path.is_file() and path not in expected:
                path.unlink()  # of an unfinished download of another revision
        if (self._part / INDEX).exists():
            remove_unselected_components(self._part / INDEX)
        receipt = {"id": self.ref.hub_id, "revision": self.ref.revision, "commit": commit}
        (self._part / RECEIPT).write_text(json.dumps(receipt, indent=2) + "\n", encoding="utf-8")
        self._part.replace(self.folder)


def _list_files(api: HfApi, ref: HubRef) -> tuple[str, list[HubFile]]:
    """Return the commit that the revision stands for now, and the repository's files."""
    try:
        info = api.model_info(ref.hub_id, revision=ref.revision or None, files_metadata=True, timeout=_TIMEOUT)
    except (ValueError, KeyError, TypeError) as error:
        raise BaseModelError(
            f"{api.endpoint} cannot be asked for {ref.hub_id}, or does not answer as a hub does ({error}); check "
            "HF_ENDPOINT and HF_TOKEN.",
            code="invalid_hub_answer",
        ) from error
    files = [
        HubFile(s.rfilename, s.size or 0, s.blob_id or "", s.lfs.sha256 if s.lfs else "") for s in info.siblings or ()
    ]
    return str(info.sha), files


@contextlib.contextmanager
def _translated_errors(ref: HubRef, folder: Path) -> Iterator[None]:
    """Raise the errors of the hub's client and of the disk as ``BaseModelError``."""
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except errors.HfHubHTTPError as error:
        raise _status_error(ref, error) from error
    except errors.OfflineModeIsEnabled as error:
        raise BaseModelError(
            f"{ref.hub_id} cannot be downloaded because HF_HUB_OFFLINE is set; unset it for this.",
            code="hub_offline",
            field="HF_HUB_OFFLINE",
        ) from error
    except httpx2.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise BaseModelError(
            f"The hub does not answer or broke off the download of {ref.hub_id} ({reason}); {_RETRY}.",
            code="hub_unavailable",
        ) from error
    except OSError as error:
        raise _disk_error(ref, folder, error) from error


def _status_error(ref: HubRef, error: Exception) -> BaseModelError:
    """Return the error for an HTTP status of the hub."""
    from huggingface_hub import errors

    hub_id = ref.hub_id
    if isinstance(error, errors.GatedRepoError):
        message = f"{hub_id!r} is gated: accept its terms on its page, then set HF_TOKEN to a token of that account."
        return BaseModelError(message, code="gated", field="HF_TOKEN")
    if isinstance(error, errors.RepositoryNotFoundError):
        message = f"The hub has no model {hub_id!r}, or it is private: check the spelling, or set HF_TOKEN."
        return BaseModelError(message, code="not_found")
    if isinstance(error, errors.RevisionNotFoundError):
        message = f"{hub_id!r} has no revision {ref.revision!r}; name a branch, a tag or a commit of it, or none."
        return BaseModelError(message, code="revision_not_found")
    status = getattr(getattr(error, "response", None), "status_code", "unknown")
    message = f"The hub answers with status {status} to the download of {hub_id}; later, {_RETRY}."
    return BaseModelError(message, code="hub_unavailable")


def _disk_error(ref: HubRef, folder: Path, error: OSError) -> BaseModelError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        message = (
            f"There is no space for {ref.hub_id} in {str(folder.parent)!r} ({error.strerror}); free some or set "
            f"MODEL_CACHE to another disk, then {_RETRY}."
        )
        return BaseModelError(message, code="no_space", field="MODEL_CACHE")
    if error.errno is None:  # the hub's client received another length than announced
        return BaseModelError(f"A file of {ref.hub_id} did not arrive whole; {_RETRY}.", code="incomplete_download")
    message = (
        f"{str(folder)!r} cannot be written ({error.strerror}); name another folder with --to, or set MODEL_CACHE."
    )
    return BaseModelError(message, code="not_writable")
