"""One training, from pictures to a LoRA file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lora_service.dataset.load import TrainingDataset
from lora_service.dataset.report import DatasetReport
from lora_service.errors import InputError
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.image_judge import ImageJudge
from lora_service.models.quantization import quantization_of
from lora_service.settings import Settings
from lora_service.training.adapters.lora_layers import LayerOptions, Layers, LearnedLayer, check_kind, lora_layers
from lora_service.training.adapters.lora_targets import learning_targets
from lora_service.training.adapters.textual_inversion import added_tokens, initial_embeddings
from lora_service.training.callbacks.held_out import BestCheckpoint, HeldOutEvaluation, HeldOutLoss, choose_held_out
from lora_service.training.callbacks.sample_callback import Sampling
from lora_service.training.callbacks.samples import SampleDrawer, sample_prompts
from lora_service.training.callbacks.stopping import INTERRUPTED, RequestFiles, StopRequest, TimeLimit
from lora_service.training.callbacks.trackers import RunTrackers, TrackerCallback, check_trackers, run_trackers
from lora_service.training.callbacks.training_progress import OnProgress, ProgressReporter
from lora_service.training.context import ClassSet, TrainingContext
from lora_service.training.data.class_dataset import (
    PictureSources,
    check_class_data,
)
from lora_service.training.data.latent_cache import cache_latents
from lora_service.training.export import IntermediateFile, TrainedAdapter, export_lora, job_state
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.inputs.family_inputs import fit_to_family
from lora_service.training.inputs.input_warnings import warn_of_inputs
from lora_service.training.inputs.resolved_config import ResolvedConfig, TaughtSubject
from lora_service.training.memory.estimate import MemorySavings, choose_savings, explain_out_of_memory
from lora_service.training.memory.offloading import Offloading, blocks_wait
from lora_service.training.memory.precision import precision
from lora_service.training.optimization.captured_gradients import CapturedGradients, recorder_of
from lora_service.training.optimization.gradients import Gradients
from lora_service.training.optimization.loop import LoopReport, TrainingCallback
from lora_service.training.optimization.optimizers import check_optimizer
from lora_service.training.optimization.processes import Processes
from lora_service.training.preparation import PhaseTimer, Preparation, PreparedPictures
from lora_service.training.runs.checkpoints import Checkpoint, CheckpointFolder, CheckpointWriter, StageRestorer
from lora_service.training.runs.run_folder import RunFolder, RunOptions, no_checkpoints
from lora_service.training.runs.run_record import RunRecord, identity_of, machine_of, stored_paths
from lora_service.training.runs.starting_lora import StartingLora
from lora_service.training.runs.state_file import write_state
from lora_service.training.stages import train_lora, train_textual_inversion

_JUDGED_WITH = 64
"""Training pictures that samples are compared with, at most."""


@dataclass(frozen=True)
class TrainResult:
    """The LoRA file of a training, and how the training went.

    Attributes:
        stages: "stage 1", "stage 2" -> its report; a stage without steps is not in it.
        seconds: phase -> seconds.
        interrupted: True if somebody stopped it; its run can go on.
    """

    path: Path
    resolved: ResolvedConfig
    dataset: TrainingDataset
    stages: dict[str, LoopReport]
    seconds: dict[str, float]
    interrupted: bool = False

    @property
    def prompt(self) -> str:
        """A prompt to start with."""
        return self.resolved.prompt


@dataclass
class Trainer:
    """Runs one training.

    Args:
        base: the base model; its weights are as before when :meth:`run` ends, however it ends.
        folder: the run folder; the LoRA file is written there.
        on_progress: called now and then with the stage, the step and the loss.
        log: called with lines for the person who waits.
        settings: limits of uploads, and the models that find faces and write captions.
        options: what is kept on the way, and who may stop it.
        start: a LoRA to go on from.
        resumed: the record of the run in ``folder`` that is to go on; None: it begins.
        started: time of :func:`time.monotonic` at which the job began; 0: when :meth:`run` is called.
        judge: tells how like the training pictures the samples of the subject are; None: nobody does.
        callbacks: makes further callbacks of what is trained; they come after all that measure.
        gradients: computes those of micro-batches; None: as the settings say.
    """

    base: DiffusionBase
    folder: Path
    on_progress: OnProgress = lambda progress: None
    log: Callable[[str], None] = lambda line: None
    settings: Settings = field(default_factory=Settings)
    options: RunOptions = field(default_factory=RunOptions)
    start: StartingLora | None = None
    resumed: RunRecord | None = None
    started: float = 0.0
    judge: ImageJudge | None = None
    callbacks: Callable[[TrainingContext], Sequence[TrainingCallback]] = lambda context: ()
    gradients: Gradients | None = None
    _timer: PhaseTimer = field(default_factory=PhaseTimer, init=False)
    _processes: Processes = field(init=False)

    def __post_init__(self) -> None:
        self._processes = Processes.launched(self.base.device)

    def run(self, source: Path | Sequence[Path], config: TrainConfig, *, class_data: Path | None = None) -> TrainResult:
        """Train on the pictures of ``source`` as ``config`` asks.

        Args:
            class_data: pictures of the subject's class, for the preservation ``prior``; None: those in the folder
                ``reg`` of ``source``, else the base draws some.

        Raises:
            PicturesError: the pictures cannot be used.
            InputError: an input cannot be used on this base, or a run cannot go on.
            LoraFileError: ``start`` does not fit the base.
            DivergedError: the loss is not finite, and there is no good state to go back to.
        """
        check_trackers(self.settings.trackers)
        check_class_data(class_data, config)
        self.started = self.started or time.monotonic()
        inputs = config
        if self.start:
            self.start.check(self.base)
            config = self.start.fill(config)
        preparation = Preparation(
            self.base, self.folder, self.settings, self._processes, self.log, self.start, self._timer
        )
        fit_to_family(config, self.base.family, self.log)  # says what is left out
        resolved = preparation.resolve(config)
        check_optimizer(resolved.config, self.base.device)
        check_kind(resolved.config, self.base)
        self.base.to_device()
        savings = choose_savings(self.base, resolved.config, self.log)
        sources = PictureSources(source, class_data)
        prepared = preparation.load(sources, config, resolved)
        dataset, resolved = prepared.dataset, prepared.resolved
        for line in (*dataset.report.lines(), *warn_of_inputs(inputs, dataset.report)):
            self.log(line)
        for text in self.start.warnings(inputs) if self.start else ():
            self.log(f"warning: {text}")
        self._warn_of_unseen(dataset, resolved)
        quantization = quantization_of(self.base)
        kept_in = "" if quantization == "none" else f" in {quantization}"
        self.log(f"base: {self.base.defaults.title}{kept_in}; {resolved.describe_defaults(inputs)}")
        if self.base.text.companions:
            for subject in resolved.subjects:
                self._say_what_companions_read(subject)
        record = self._record(sources, inputs, prepared)
        with self._run_trackers(resolved) as trackers:
            with (
                explain_out_of_memory(self.base, resolved.config, checkpointing=savings.checkpointing),
                blocks_wait(self.base, is_on=savings.blocks),
            ):
                offloading = Offloading.of(self.base, is_on=savings.offloading)
                context = replace(self._context(prepared, offloading), gradients=self._gradients(savings))
                with (
                    precision(self.base, resolved, checkpointing=savings.checkpointing) as autocast,
                    offloading.vae_waits(),
                ):
                    adapter, stages = self._train(replace(context, autocast=autocast), dataset.report, record, trackers)
            result = self._export(record, adapter, resolved, dataset, stages)
            trackers.log_file(result.path)
        return result

    def _gradients(self, savings: MemorySavings) -> Gradients | None:
        """Return what computes gradients; None: one operation after the other."""
        if self.gradients:
            return self.gradients
        recorder = recorder_of(self.settings, self.base.device, self.log)
        if recorder is None:
            return None
        if savings.checkpointing or savings.offloading or savings.blocks or self.base.waiting_blocks is not None:
            self.log("warning: CUDA_GRAPHS does nothing where memory is saved, as the steps then wait for the host")
            return None
        return CapturedGradients(recorder)

    def _say_what_companions_read(self, subject: TaughtSubject) -> None:
        """Log what encoders that learn no tokens read in the place of a subject's."""
        if subject.tokens:
            names = ", ".join(self.base.text.companions)
            instead = f"reads {subject.trigger!r} in place of" if subject.trigger else "leaves out"
            self.log(f"{names}, which learns no new tokens, {instead} {subject.text}")

    def _record(self, sources: PictureSources, config: TrainConfig, prepared: PreparedPictures) -> RunRecord:
        """Write the record of the run, or, where it goes on, check it.

        Raises:
            InputError: it cannot go on with these pictures, this base or these settings.
        """
        run = RunFolder(self.folder)
        resolved = prepared.resolved
        identity = identity_of(
            resolved, (prepared.dataset, prepared.of_class), self.base, self.start.digest if self.start else ""
        )
        machine = machine_of(self.base)
        if self.resumed:
            self.resumed.check(identity, run)
            if self.resumed.machine != machine:
                self.log(
                    f"warning: the run began on {self.resumed.machine}, and this is {machine}: last bits may differ"
                )
            record = replace(self.resumed, status="running")
        else:
            record = RunRecord(
                inputs=config.model_dump(exclude={"start_from"}) | {"seed": resolved.config.seed},
                identity=identity,
                pictures=stored_paths(sources.pictures, run),
                class_data=stored_paths(sources.class_data, run) if sources.class_data else [],
                output=str(self.options.output.absolute()) if self.options.output else "",
                save_every=self.options.save_every,
                keep=self.options.keep,
                machine=machine,
            )
            if self.start:
                write_state(run.start, self.start.state_dict())
        if self._processes.is_main:
            record.write(run)
        return record

    def _export(
        self,
        record: RunRecord,
        adapter: TrainedAdapter,
        resolved: ResolvedConfig,
        dataset: TrainingDataset,
        stages: dict[str, LoopReport],
    ) -> TrainResult:
        """Write the LoRA file of what was learned, and say in the record how the run ended."""
        run = RunFolder(self.folder)
        interrupted = any(stage.stop_reason == INTERRUPTED for stage in stages.values())
        if not adapter.layers and resolved.config.max_train_steps_tuning:  # stopped before stage 2: tokens only
            interrupted = True
            resolved = resolved.without_stage_2()
        for name, stage in stages.items():
            if stage.diverged_at:
                self.log(
                    f"warning: {name} diverged: its loss or weights were no numbers any more by step "
                    f"{stage.diverged_at}; the file holds the last good state, that of step {stage.steps}. "
                    "Try lower learning rates, a tenth of them first"
                )
            elif stage.stop_reason:
                self.log(f"{name} ended after step {stage.steps}: {stage.stop_reason}")
        path = export_lora(run.lora, adapter, self.base, resolved, dataset.report, stages)
        if self._processes.is_main:
            record.with_status("stopped" if interrupted else "finished").write(run)
            run.stop_request.unlink(missing_ok=True)  # or the run could not go on
        if not interrupted:
            CheckpointFolder(run.checkpoints).clear()
        return TrainResult(path, resolved, dataset, stages, dict(self._timer.seconds), interrupted)

    def _warn_of_unseen(self, dataset: TrainingDataset, resolved: ResolvedConfig) -> None:
        """Warn where the steps end before every picture was shown."""
        config = resolved.config
        steps = max(config.max_train_steps_ti, config.max_train_steps_tuning)
        shown = steps * config.train_batch_size * config.gradient_accumulation_steps * self._processes.count
        if shown < len(dataset.images):
            count = len(dataset.images)
            self.log(f"warning: {steps} steps show {shown} of the {count} pictures; take more steps, or fewer pictures")

    def _context(self, prepared: PreparedPictures, offloading: Offloading) -> TrainingContext:
        dataset, class_images, resolved = prepared.dataset, prepared.of_class.images, prepared.resolved
        config, seed = resolved.config, resolved.config.seed or 0
        flip, jitter = bool(config.flip), bool(config.color_jitter)
        held_out = choose_held_out(dataset.images, config)
        self.log(held_out.line)
        images, held_out_images = held_out.split(dataset.images)
        with self._timer.measure("latents"), offloading.text_waits(is_needed=False):
            latents = cache_latents(
                images, self.base, flip=flip, color_jitter=jitter, random_crop=config.random_crop, seed=seed
            )
            held_out_latents = cache_latents(held_out_images, self.base, flip=False, color_jitter=False, seed=seed)
            of_class = cache_latents(class_images, self.base, flip=flip, color_jitter=False, seed=seed)
        return TrainingContext(
            self.base,
            images,
            latents,
            resolved,
            replace(
                self.base.text.with_clip_skip(config.clip_skip),
                on_device=offloading.text.on_device,
                companions_on_device=offloading.companions.on_device,
            ),
            autocast=None,
            processes=self._processes,
            held_out_images=held_out_images,
            held_out_latents=held_out_latents,
            class_set=ClassSet(class_images, of_class) if class_images else None,
            offloading=offloading,
        )

    @contextmanager
    def _run_trackers(self, resolved: ResolvedConfig) -> Iterator[RunTrackers]:
        """Start the trackers within the context, in the main process alone."""
        names = self.settings.trackers if self._processes.is_main else ()
        folder = self.settings.tracker_folder or self.folder / "trackers"
        with run_trackers(names, resolved.title, folder, self.log) as trackers:
            trackers.store_settings(resolved.as_json())
            yield trackers

    def _train(
        self, context: TrainingContext, report: DatasetReport, record: RunRecord, trackers: RunTrackers
    ) -> tuple[TrainedAdapter, dict[str, LoopReport]]:
        """Run both stages, or what is left of them; the base is as before afterwards."""
        resolved, config = context.resolved, context.resolved.config
        generator = torch.Generator().manual_seed(config.seed or 0)
        checkpoint = self._checkpoint(record)
        adapter = TrainedAdapter(None, start_from=str(record.identity["start_from"]))
        stages = {name: LoopReport(**each) for name, each in checkpoint.job["stages"].items()} if checkpoint else {}
        with ExitStack() as stack:
            if resolved.tokens:
                rows = self._initial_rows(resolved, generator)
                if checkpoint:
                    rows = checkpoint.job["tokens"]
                added = added_tokens(self.base, resolved.tokens, rows, resolved.plain_words)
                adapter.tokens = stack.enter_context(added)
                known = adapter.tokens.text
                context = replace(context, text=context.text.with_tokenizers(known.tokenizers, known.plain_text))
            sampling = self._sampling(context, trackers)
            watching = self._watching(context, sampling, trackers)
            callbacks = self._callbacks(watching, record, checkpoint, lambda: job_state(adapter, stages))
            if self._processes.is_main:
                run = RunFolder(self.folder)
                files = IntermediateFile(run.saved, adapter, self.base, resolved, report, stages, self.log)
                callbacks.insert(-1, RequestFiles(run, self.options.stop, files.write))
            if adapter.tokens and config.max_train_steps_ti and "stage 1" not in stages:
                with self._timer.measure("stage 1"):
                    stages["stage 1"] = train_textual_inversion(context, adapter.tokens, callbacks)
            if config.max_train_steps_tuning and not self._processes.agree(self.options.stop.stops_now):
                adapter.layers = self._add_layers(stack, resolved, generator)
                with self._timer.measure("stage 2"):
                    stages["stage 2"] = train_lora(context, adapter.layers, adapter.tokens, callbacks)
        if sampling is not None:
            adapter.samples, adapter.thumbnail = sampling.summary(), sampling.thumbnail
        return adapter, stages

    def _initial_rows(self, resolved: ResolvedConfig, generator: torch.Generator) -> Mapping[str, torch.Tensor]:
        if self.start and self.start.rows:
            return {encoder: torch.stack(rows) for encoder, rows in self.start.rows_by_encoder().items()}
        return initial_embeddings(self.base, resolved.tokens, resolved.initializers, generator)

    def _checkpoint(self, record: RunRecord) -> Checkpoint | None:
        """Return the checkpoint that the run goes on from, if it does and there is one.

        Raises:
            InputError: it is another run's (code ``foreign_checkpoint``), or there are several processes
                (``several_processes``).
        """
        if not self.resumed:
            return None
        folder = RunFolder(self.folder)
        if self._processes.count > 1:
            raise no_checkpoints("resume", str(self.folder))
        checkpoint = CheckpointFolder(folder.checkpoints, record.keep).latest(self.log)
        if checkpoint is None:
            self.log("there is no checkpoint yet: the run begins anew")
            return None
        if checkpoint.identity != record.identity:
            expected = "a run folder with checkpoints of its own run"
            raise InputError("resume", str(self.folder), expected, code="foreign_checkpoint")
        self.log(f"going on with {checkpoint.stage} after step {checkpoint.run['step']}")
        return checkpoint

    def _sampling(self, context: TrainingContext, trackers: RunTrackers) -> Sampling | None:
        """Return what draws samples; None where nobody wants any."""
        if context.resolved.config.samples == 0:
            return None
        drawer = SampleDrawer(context, sample_prompts(context.resolved))
        show = partial(trackers.log_image, "samples")
        likeness = partial(self.judge.similarity, subject=_first_subject(context)) if self.judge else None
        folder = RunFolder(self.folder).samples
        return Sampling(drawer, folder, self.log, likeness, show, self.options.sample_times)

    def _watching(
        self, context: TrainingContext, sampling: Sampling | None, trackers: RunTrackers
    ) -> list[TrainingCallback]:
        """Return the callbacks that watch the stages: those that measure come before those that read it."""
        config = context.resolved.config
        watching: list[TrainingCallback] = [HeldOutEvaluation(HeldOutLoss(context))]
        if config.keep == "best":
            watching.append(BestCheckpoint(self.log))
        watching += [ProgressReporter(self.on_progress), TrackerCallback(trackers)]
        if sampling:
            watching.append(sampling)
        if config.stop_after_seconds:
            watching.append(TimeLimit(config.stop_after_seconds, self.started))
        return [*watching, *self.callbacks(context)]

    def _callbacks(
        self,
        watching: list[TrainingCallback],
        record: RunRecord,
        checkpoint: Checkpoint | None,
        job: Callable[[], Mapping[str, Any]],
    ) -> list[TrainingCallback]:
        """Return the callbacks of this process: those that watch stand between those that restore, save and stop."""
        if not self._processes.is_main:
            return []
        folder = CheckpointFolder(RunFolder(self.folder).checkpoints, record.keep)
        writer = CheckpointWriter(folder, record.save_every, watching, job, record.identity, checkpoint)
        save = writer.save if record.save_every != 0 else lambda stage: None
        return [StageRestorer(checkpoint), *watching, writer, StopRequest(self.options.stop, save)]

    def _add_layers(self, stack: ExitStack, resolved: ResolvedConfig, generator: torch.Generator) -> Layers:
        """Add LoRA layers to the UNet and the text encoders until ``stack`` ends; none where the rate is 0."""
        config = resolved.config
        options = LayerOptions(config.lora_rank or 1, config.lora_alpha or 1.0, config.lora_kind)
        layers: dict[str, Mapping[str, LearnedLayer]] = {}
        for component, model in self.base.components.items():
            starts = self.start.starts(component, self.base) if self.start else {}
            is_backbone = component == self.base.family.backbone
            learn = bool(config.learning_rate_unet if is_backbone else config.learning_rate_text)
            if learn or starts:
                targets = learning_targets(self.base, component, config.lora_targets)
                paths = targets if learn else ()
                added = lora_layers(model, paths, options, generator, starts, learn=learn, device=self.base.device)
                layers[component] = stack.enter_context(added)
                if self.start:
                    new = len(layers[component]) - len(starts)
                    self.log(f"{component}: {len(starts)} layers go on from start_from, {new} are new")
        return layers


def _first_subject(context: TrainingContext) -> list[Image.Image]:
    """Return pictures of the first subject, which is the one in the prompts of samples."""
    return [image.image for image in context.images if image.subject == 0][:_JUDGED_WITH]
