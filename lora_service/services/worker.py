"""The worker process of Cog's server: it imports before the first job, and ends after a job that left it unfit.

Cog cancels a job by raising an exception in it at the next bytecode. Inside an import that leaves a module half made:
Python forgets the module, but not what it had registered with torch by then, so that every later import of it fails.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
import tempfile
import time
import types
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from lora_service.errors import BaseModelError
from lora_service.models.registry import family_at, locate
from lora_service.services.deferred_imports import Names, defer_imports, run_alone
from lora_service.settings import Settings
from lora_service.temporary_folders import remove_abandoned_folders

JOB_FILE_VARIABLE = "LORA_SERVICE_JOB_FILE"
"""Names, for a worker, the file in which it notes whether a job runs; `lora_service.serving` sets it and reads it."""
IDLE, RUNNING = "idle", "running"

COG_JOBS = Path("/tmp/coglet/predictions")
"""Cog's folder of every server's jobs on this machine; it makes three folders for each and removes none."""
_COG_JOB_AGE = 2 * 24 * 3600.0  # seconds; a job that still runs may be as old as that

_TORCH_MODULE = "torch.nn.modules.module"

COMMON_IMPORTS = (
    "transformers:CLIPTextModel CLIPTextModelWithProjection CLIPTokenizer",
    "diffusers:AutoencoderKL UNet2DConditionModel DDIMScheduler StableDiffusionPipeline StableDiffusionXLPipeline",
    # Schedulers that those of a base name as compatible, and what a pipeline's module names only to check types.
    "diffusers:EDMEulerScheduler DEISMultistepScheduler DPMSolverSinglestepScheduler UniPCMultistepScheduler",
    "diffusers:KDPM2DiscreteScheduler KDPM2AncestralDiscreteScheduler",
    "diffusers.guiders",
    "huggingface_hub:HfApi get_token hf_hub_url",
    "huggingface_hub.file_download",
    "huggingface_hub.errors",
    "encodings.cp437",  # names in archives
    "encodings.idna",  # names of hosts
    "multiprocessing.synchronize",
    "encodings.utf_16_be",  # the settings in a picture's EXIF data
    "torch.fx.experimental.symbolic_shapes",  # models without values, which both libraries fill when they load one
    "lora_service.models.loading",
    "lora_service.dataset.images.decoder_process",
)
"""Imports of any job, as `import_all` takes them: both libraries import a class when it is first asked for."""


def family_imports(settings: Settings) -> tuple[str, ...]:
    """Return what jobs on the base of ``settings`` import beside :data:`COMMON_IMPORTS`, as far as its folder shows."""
    try:
        path, _ = locate(settings.base_model, settings.model_cache)
    except BaseModelError:
        return ()  # which the first job reports
    family = family_at(settings.base_model, path)
    return family.imports if family else ()


def import_all(targets: Iterable[str]) -> None:
    """Import modules; after ``:`` come names of a module that imports what is behind them at their first use.

    A module that the installed version of its library does not have is left out.
    """
    for target in targets:
        module, _, names = target.partition(":")
        try:
            imported = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            continue
        for name in names.split():
            getattr(imported, name)


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Keep Python's garbage collector from what is imported and loaded meanwhile, now and later.

    It would go through all modules again and again while they become more, and then in each full collection of a job.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


class Worker:
    """The process in which Cog's server runs jobs, one after another.

    Args:
        job_file: the file that says whether a job runs; None: that of the environment, if it names one.
    """

    def __init__(self, job_file: Path | None = None) -> None:
        named = os.environ.get(JOB_FILE_VARIABLE)
        self._job_file = job_file or (Path(named) if named else None)

    def prepare(self, targets: Iterable[str], deferred: Sequence[Names] = ()) -> None:
        """Import everything that a usual job needs and remove what earlier processes left.

        Args:
            targets: as of `import_all`.
            deferred: what libraries name in passing, and waits until it is used.
        """
        from PIL import Image

        if deferred:
            defer_imports(*deferred)
            run_alone()
        import_all(targets)
        Image.init()  # imports the decoder of each format
        remove_abandoned_folders()
        remove_leftovers(self._private_folder())
        self._note(IDLE)

    @contextlib.contextmanager
    def running(self, files: Collection[Path] = ()) -> Iterator[None]:
        """Note that a job runs; before it, remove what earlier ones left. ``files`` are the job's own uploads."""
        self._note(RUNNING)
        try:
            remove_leftovers(self._private_folder(), files)
            yield
        finally:
            self._note(IDLE)

    def end(self, reason: str) -> None:
        """End the process at once: Cog fails the job, and the supervisor starts another worker."""
        print(f"The worker ends, and another one has to be started: {reason}.", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(1)

    def _note(self, state: str) -> None:
        if self._job_file is not None:
            with contextlib.suppress(OSError):  # a full disk must not fail the job
                self._job_file.write_text(state, encoding="utf-8")

    def _private_folder(self) -> Path | None:
        """Return the folder for temporary files if no other program writes there: a server of ours has its own."""
        return None if self._job_file is None else Path(tempfile.gettempdir())


def remove_leftovers(folder: Path | None, keep: Collection[Path] = ()) -> None:
    """Remove the temporary files of ended jobs in ``folder``, but those in ``keep``, and Cog's old, empty job folders.

    A request that is broken off leaves the file in which Cog received its upload.
    """
    kept = {path.resolve() for path in keep}
    for path in folder.glob("tmp*") if folder else ():
        if path.is_file() and path.resolve() not in kept:
            path.unlink(missing_ok=True)
    before = time.time() - _COG_JOB_AGE
    jobs = [*COG_JOBS.glob("*/*"), *COG_JOBS.glob("*")]  # parents after their children
    for path in [path for path in jobs if _is_older(path, before)]:
        with contextlib.suppress(OSError):  # rmdir leaves alone what is not empty
            path.rmdir()


def _is_older(path: Path, moment: float) -> bool:
    try:
        return path.stat().st_mtime < moment
    except OSError:  # another server has removed it
        return False


def broke_import(error: BaseException | None) -> bool:
    """Return True if ``error``, or what it was raised from, came out of the import of a module.

    The frames of a job's error begin at the job, so that the top level of a module is there only if it was imported.
    Python takes most frames of its import system itself out of tracebacks.
    """
    while error is not None:
        for code in (frame.f_code for frame in _frames(error)):
            if code.co_name == "<module>" or code.co_filename.startswith("<frozen importlib"):
                return True
        error = error.__cause__ or error.__context__
    return False


def torch_is_usable() -> bool:
    """Return False if a job left PyTorch in a mode it switched on, or its GPU unusable.

    An interruption can keep the end of a ``with`` block from being run; after some errors CUDA answers nothing else.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return True
    if torch.is_inference_mode_enabled() or torch.is_autocast_enabled() or not torch.is_grad_enabled():
        return False
    # diffusers and transformers change both while they load a model.
    if torch.get_default_dtype() != torch.float32 or torch.nn.Module.register_parameter.__module__ != _TORCH_MODULE:
        return False
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return False
    return True


def _frames(error: BaseException) -> Iterator[types.FrameType]:
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next
