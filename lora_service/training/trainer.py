"""One training, from pictures to a LoRA file."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lora_service.dataset.captions.token_window import TokenWindow
from lora_service.dataset.load import TrainingDataset, load_dataset
from lora_service.dataset.options import DatasetOptions
from lora_service.dataset.training_images import TrainingImage
from lora_service.errors import InputError
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.quantization import quantization_of
from lora_service.settings import Settings
from lora_service.training.best_checkpoint import BestCheckpoint
from lora_service.training.checkpoints import Checkpoint, CheckpointFolder, CheckpointWriter, StageRestorer
from lora_service.training.class_dataset import (
    ClassPictures,
    PictureSources,
    check_class_data,
    class_options,
    class_report_lines,
    given_class_pictures,
)
from lora_service.training.class_image_cache import ClassImageCache
from lora_service.training.class_images import ClassImageArtist
from lora_service.training.config import (
    CLASS_IMAGES,
    ResolvedConfig,
    TrainConfig,
    resolve_config,
    with_trigger,
)
from lora_service.training.early_stopping import EarlyStopping
from lora_service.training.export import TrainedAdapter, export_lora, job_state
from lora_service.training.held_out import HeldOutEvaluation, HeldOutLoss, choose_held_out
from lora_service.training.input_warnings import warn_of_inputs
from lora_service.training.latent_cache import cache_latents
from lora_service.training.loop import LoopReport, TrainingCallback
from lora_service.training.lora_layers import LayerOptions, Layers, LearnedLayer, check_kind, lora_layers
from lora_service.training.lora_targets import learning_targets
from lora_service.training.memory import choose_savings, explain_out_of_memory
from lora_service.training.offloading import Offloading
from lora_service.training.optimizers import check_optimizer
from lora_service.training.preservation import ClassSet
from lora_service.training.processes import Processes
from lora_service.training.run_folder import RunFolder, RunOptions
from lora_service.training.run_record import RunRecord, identity_of, machine_of, stored_paths
from lora_service.training.samples import SampleDrawer, sample_prompts
from lora_service.training.sampling import Likeness, Sampling
from lora_service.training.stages import TrainingContext, train_lora, train_textual_inversion
from lora_service.training.starting_lora import StartingLora
from lora_service.training.state_file import write_state
from lora_service.training.stopping import INTERRUPTED, StopRequest, TimeLimit
from lora_service.training.textual_inversion import added_tokens, initial_embeddings
from lora_service.training.trackers import RunTrackers, TrackerCallback, check_trackers, run_trackers
from lora_service.training.training_progress import OnProgress, ProgressReporter
from lora_service.training.trigger_words import choose_trigger_word


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
        likeness: judges the samples of the subject on the way; None: nobody does.
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
    likeness: Likeness | None = None
    _seconds: dict[str, float] = field(default_factory=dict, init=False)
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
        given = config
        if self.start:
            self.start.check(self.base)
            config = self.start.fill(config)
        resolved = self._resolve(config)
        check_optimizer(resolved.config, self.base.device)
        check_kind(resolved.config, self.base)
        self.base.to_device()
        savings = choose_savings(self.base, resolved.config, self.log)
        sources = PictureSources(source, class_data)
        dataset, class_pictures, resolved = self._load(sources, config, resolved)
        for line in (*dataset.report.lines(), *warn_of_inputs(given, dataset.report)):
            self.log(line)
        for text in self.start.warnings(given) if self.start else ():
            self.log(f"warning: {text}")
        self._warn_of_unseen(dataset, resolved)
        quantization = quantization_of(self.base)
        kept_in = "" if quantization == "none" else f" in {quantization}"
        self.log(f"base: {self.base.defaults.title}{kept_in}; {resolved.describe_defaults(given)}")
        record = self._record(sources, given, resolved, (dataset, class_pictures))
        with self._run_trackers(resolved) as trackers:
            with explain_out_of_memory(self.base, resolved.config, checkpointing=savings.checkpointing):
                offloading = Offloading.of(self.base, is_on=savings.offloading)
                context = self._context(dataset, resolved, class_pictures.images, offloading)
                with (
                    precision(self.base, resolved, checkpointing=savings.checkpointing) as autocast,
                    offloading.vae_waits(),
                ):
                    adapter, stages = self._train(replace(context, autocast=autocast), record, trackers)
            result = self._export(record, adapter, resolved, dataset, stages)
            trackers.log_file(result.path)
        return result

    def _load(
        self, sources: PictureSources, config: TrainConfig, resolved: ResolvedConfig
    ) -> tuple[TrainingDataset, ClassPictures, ResolvedConfig]:
        """Load the pictures, whose folders may have the trigger words, and those of the class."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._timed("pictures"):
            options = resolved.config.dataset_options(
                self.base.defaults,
                self.settings,
                resolved.trigger,
                "".join(resolved.tokens),
                takes_folder_word=not config.trigger,
                token_window=self._token_window(resolved),
            )
            dataset = load_dataset(sources.pictures, options, self.folder)
        if dataset.triggers:
            resolved = self._resolve_triggers(config, dataset.triggers, resolved.config.seed)
        class_pictures = self._class_pictures(sources, dataset, options, resolved)
        if class_pictures.images:
            dataset = replace(dataset, report=dataset.report.without_class_pictures())
        return dataset, class_pictures, resolved

    def _record(
        self,
        sources: PictureSources,
        config: TrainConfig,
        resolved: ResolvedConfig,
        pictures: tuple[TrainingDataset, ClassPictures],
    ) -> RunRecord:
        """Write the record of the run, or, where it goes on, check it.

        Args:
            pictures: those of the subject and of its class.

        Raises:
            InputError: it cannot go on with these pictures, this base or these settings.
        """
        run = RunFolder(self.folder)
        identity = identity_of(resolved, pictures, self.base, self.start.digest if self.start else "")
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
        if not interrupted:
            CheckpointFolder(run.checkpoints).clear()
        return TrainResult(path, resolved, dataset, stages, dict(self._seconds), interrupted)

    def _warn_of_unseen(self, dataset: TrainingDataset, resolved: ResolvedConfig) -> None:
        """Warn where the steps end before every picture was shown."""
        config = resolved.config
        steps = max(config.max_train_steps_ti, config.max_train_steps_tuning)
        shown = steps * config.train_batch_size * config.gradient_accumulation_steps * self._processes.count
        if shown < len(dataset.images):
            count = len(dataset.images)
            self.log(f"warning: {steps} steps show {shown} of the {count} pictures; take more steps, or fewer pictures")

    def _token_window(self, resolved: ResolvedConfig) -> TokenWindow:
        """Return the tokens that the base reads of a caption.

        Raises:
            InputError: the trigger word or the new tokens alone are more than it reads at once.
        """
        text, chunks = self.base.text, resolved.config.chunks
        window = TokenWindow(text.count, text.chunk_tokens, subject_tokens=len(resolved.tokens), chunks=chunks)
        if len(resolved.tokens) > window.size:
            expected = f"at most {window.size} names, as the base reads so many tokens"
            raise InputError("placeholder_tokens", resolved.config.placeholder_tokens, expected, code="too_many_tokens")
        return window.for_subject("trigger", resolved.trigger)

    def _class_pictures(
        self, sources: PictureSources, dataset: TrainingDataset, options: DatasetOptions, resolved: ResolvedConfig
    ) -> ClassPictures:
        """Return the pictures of the subject's class, none where they are not needed."""
        if resolved.preservation != "prior":
            return ClassPictures()
        with self._timed("class pictures"):
            given = given_class_pictures(sources, options, dataset.report, resolved, self.folder)
            if given is None:
                settings = self.settings
                cache = ClassImageCache(settings.class_image_cache, settings.class_image_cache_max_bytes)
                artist = ClassImageArtist(self.base, cache, self.log)
                count = resolved.config.num_class_images or CLASS_IMAGES
                drawn = artist.dataset(resolved.class_prompts, count, class_options(options, resolved), self.folder)
                return ClassPictures(drawn.images, are_drawn=True)
        for line in class_report_lines(given.report):
            self.log(line)
        if resolved.config.num_class_images != CLASS_IMAGES:
            self.log("warning: num_class_images has no effect, as class pictures are given")
        return ClassPictures(given.images)

    def _context(
        self,
        dataset: TrainingDataset,
        resolved: ResolvedConfig,
        class_images: tuple[TrainingImage, ...],
        offloading: Offloading,
    ) -> TrainingContext:
        config, seed = resolved.config, resolved.config.seed or 0
        flip, jitter = bool(config.flip), bool(config.color_jitter)
        held_out = choose_held_out(dataset.images, config)
        self.log(held_out.line)
        images, held_out_images = held_out.split(dataset.images)
        with self._timed("latents"), offloading.text_waits(is_needed=False):
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
            replace(self.base.text.with_clip_skip(config.clip_skip), on_device=offloading.text.on_device),
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
        self, context: TrainingContext, record: RunRecord, trackers: RunTrackers
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
                adapter.tokens = stack.enter_context(added_tokens(self.base, resolved.tokens, rows))
                context = replace(context, text=context.text.with_tokenizers(adapter.tokens.text.tokenizers))
            sampling = self._sampling(context, trackers)
            watching = self._watching(context, sampling, trackers)
            callbacks = self._callbacks(watching, record, checkpoint, lambda: job_state(adapter, stages))
            if adapter.tokens and config.max_train_steps_ti and "stage 1" not in stages:
                with self._timed("stage 1"):
                    stages["stage 1"] = train_textual_inversion(context, adapter.tokens, callbacks)
            if config.max_train_steps_tuning and not self._processes.agree(self.options.stop.stops_now):
                adapter.layers = self._add_layers(stack, resolved, generator)
                with self._timed("stage 2"):
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
            InputError: it is another run's (code ``foreign_checkpoint``), or there are several processes.
        """
        if not self.resumed:
            return None
        folder = RunFolder(self.folder)
        if self._processes.count > 1:
            raise InputError("resume", str(self.folder), "left out where several processes train together")
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
        return Sampling(drawer, RunFolder(self.folder).samples, self.log, self.likeness, show)

    def _watching(
        self, context: TrainingContext, sampling: Sampling | None, trackers: RunTrackers
    ) -> list[TrainingCallback]:
        """Return the callbacks that watch the stages: those that measure come before those that read it."""
        config = context.resolved.config
        watching: list[TrainingCallback] = [HeldOutEvaluation(HeldOutLoss(context))]
        if config.keep == "best":
            watching.append(BestCheckpoint(self.log))
        if config.preset == "fast":
            watching.append(EarlyStopping(self.log))
        watching += [ProgressReporter(self.on_progress), TrackerCallback(trackers)]
        if sampling:
            watching.append(sampling)
        if config.stop_after_seconds:
            watching.append(TimeLimit(config.stop_after_seconds, self.started))
        return watching

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

    def _resolve_triggers(self, config: TrainConfig, triggers: Sequence[str], seed: int | None) -> ResolvedConfig:
        """Resolve ``config`` with the trigger words that the pictures' folders have.

        Raises:
            InputError: a word cannot be a trigger.
        """
        first, *others = (with_trigger(config, trigger, seed) for trigger in triggers)
        if others and config.preservation != "none":
            expected = f"none, as the folders name several subjects ({', '.join(triggers)}), each of a class of its own"
            raise InputError("preservation", config.preservation, expected, code="several_subjects")
        resolved = self._resolve(first, [other.trigger for other in others])
        if others:
            for number, subject in enumerate(resolved.subjects, start=1):
                self.log(f"subject {number}: trigger {subject.trigger!r}, tokens {' '.join(subject.tokens) or 'none'}")
        else:
            self.log(f"trigger: {first.trigger!r}, the word of the pictures' folder")
        return resolved

    def _resolve(self, config: TrainConfig, more_triggers: Sequence[str] = ()) -> ResolvedConfig:
        drawn = random.SystemRandom().randrange(2**32)
        seed = self._processes.agree(drawn) if config.seed is None else config.seed
        word = choose_trigger_word(self.base.text, random.Random(seed))
        trigger = config.trigger or f"{word} {config.class_word}".strip()
        resolved = resolve_config(config, self.base.defaults, trigger, seed, more_triggers)
        main, *others = resolved.config.resolutions(self.base.defaults)
        self.base.check_side("resolution", main)
        for side in others:
            self.base.check_side("more_resolutions", side)
        self.base.text.with_clip_skip(resolved.config.clip_skip)
        return self.start.resolve(resolved) if self.start else resolved

    def _add_layers(self, stack: ExitStack, resolved: ResolvedConfig, generator: torch.Generator) -> Layers:
        """Add LoRA layers to the UNet and the text encoders until ``stack`` ends; none where the rate is 0."""
        config = resolved.config
        options = LayerOptions(config.lora_rank or 1, config.lora_alpha or 1.0, config.lora_kind)
        layers: dict[str, Mapping[str, LearnedLayer]] = {}
        for component, model in self.base.components.items():
            starts = self.start.starts(component, self.base) if self.start else {}
            learn = bool(config.learning_rate_unet if component == "unet" else config.learning_rate_text)
            if learn or starts:
                targets = learning_targets(self.base, component, config.lora_targets)
                paths = targets if learn else ()
                added = lora_layers(model, paths, options, generator, starts, learn=learn)
                layers[component] = stack.enter_context(added)
                if self.start:
                    new = len(layers[component]) - len(starts)
                    self.log(f"{component}: {len(starts)} layers go on from start_from, {new} are new")
        return layers

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._seconds[phase] = round(time.monotonic() - started, 2)


@contextmanager
def precision(base: DiffusionBase, resolved: ResolvedConfig, *, checkpointing: bool) -> Iterator[torch.dtype | None]:
    """Yield the dtype to compute in, None for fp32; within the context gradients of the UNet may be checkpointed.

    ``auto`` is the dtype of the base's weights: fp32 on a CPU, which gains nothing from less, bf16 on a card that has
    it, fp16 (with scaled gradients) on older ones.

    Raises:
        InputError: fp16 on a CPU, which has no gradient scaling; or full precision of weights in half precision.
    """
    mode = resolved.config.mixed_precision
    if mode == "fp16" and base.device.type != "cuda":
        raise InputError("mixed_precision", mode, f"auto, no or bf16 on a {base.device.type} device")
    if mode == "no" and base.dtype != torch.float32:
        expected = "auto, fp16 or bf16 here, as the server holds the base in half precision"
        raise InputError("mixed_precision", mode, expected)
    auto = None if base.dtype == torch.float32 else base.dtype
    dtype = {"auto": auto, "no": None, "fp16": torch.float16, "bf16": torch.bfloat16}[mode]
    if not checkpointing:
        yield dtype
        return
    base.unet.enable_gradient_checkpointing()
    base.unet.train()  # diffusers checkpoints in training mode only; no part of these UNets has dropout
    try:
        yield dtype
    finally:
        base.unet.eval()
        base.unet.disable_gradient_checkpointing()
