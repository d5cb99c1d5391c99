"""One training, from pictures to a LoRA file."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from lora_service.dataset.captions.token_window import TokenWindow
from lora_service.dataset.load import TrainingDataset, load_dataset
from lora_service.errors import InputError
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.settings import Settings
from lora_service.training.config import ResolvedConfig, TrainConfig, resolve_config, with_trigger
from lora_service.training.export import TrainedAdapter, export_lora
from lora_service.training.input_warnings import warn_of_inputs
from lora_service.training.latent_cache import cache_latents
from lora_service.training.loop import LoopReport, TrainingCallback
from lora_service.training.lora_layers import LayerOptions, Layers, lora_layers
from lora_service.training.lora_targets import learning_targets
from lora_service.training.memory import choose_checkpointing, explain_out_of_memory
from lora_service.training.optimizers import check_optimizer
from lora_service.training.stages import TrainingContext, train_lora, train_textual_inversion
from lora_service.training.textual_inversion import added_tokens, initial_embeddings
from lora_service.training.training_progress import OnProgress, ProgressReporter
from lora_service.training.trigger_words import choose_trigger_word


@dataclass(frozen=True)
class TrainResult:
    """The LoRA file of a training, and how the training went.

    Attributes:
        stages: "stage 1", "stage 2" -> its report; a stage without steps is not in it.
        seconds: phase -> seconds.
    """

    path: Path
    resolved: ResolvedConfig
    dataset: TrainingDataset
    stages: dict[str, LoopReport]
    seconds: dict[str, float]

    @property
    def prompt(self) -> str:
        """A prompt to start with."""
        return self.resolved.prompt


@dataclass
class Trainer:
    """Runs one training.

    Args:
        base: the base model; its weights are as before when :meth:`run` ends, however it ends.
        folder: the job's working folder; the LoRA file is written there.
        on_progress: called now and then with the stage, the step and the loss.
        log: called with lines for the person who waits.
        settings: limits of uploads, and the models that find faces and write captions.
    """

    base: DiffusionBase
    folder: Path
    on_progress: OnProgress = lambda progress: None
    log: Callable[[str], None] = lambda line: None
    settings: Settings = field(default_factory=Settings)
    _seconds: dict[str, float] = field(default_factory=dict, init=False)

    def run(self, source: Path | Sequence[Path], config: TrainConfig) -> TrainResult:
        """Train on the pictures of ``source`` as ``config`` asks.

        Raises:
            PicturesError: the pictures cannot be used.
            InputError: an input cannot be used on this base.
            DivergedError: the loss is not finite.
        """
        resolved = self._resolve(config)
        check_optimizer(resolved.config, self.base.device)
        checkpointing = choose_checkpointing(self.base, resolved.config, self.log)
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
            dataset = load_dataset(source, options, self.folder)
        if dataset.trigger:
            resolved = self._resolve(with_trigger(config, dataset.trigger, resolved.config.seed))
            self.log(f"trigger: {dataset.trigger!r}, the word of the pictures' folder")
        for line in (*dataset.report.lines(), *warn_of_inputs(config, dataset.report)):
            self.log(line)
        self._warn_of_unseen(dataset, resolved)
        self.log(f"base: {self.base.defaults.title}; {resolved.describe_defaults(config)}")
        with explain_out_of_memory(self.base, resolved.config, checkpointing=checkpointing):
            context = self._context(dataset, resolved)
            with precision(self.base, resolved, checkpointing=checkpointing) as autocast:
                adapter, stages = self._train(replace(context, autocast=autocast))
        path = export_lora(self.folder / "lora.safetensors", adapter, self.base, resolved, dataset.report, stages)
        return TrainResult(path, resolved, dataset, stages, dict(self._seconds))

    def _warn_of_unseen(self, dataset: TrainingDataset, resolved: ResolvedConfig) -> None:
        """Warn where the steps end before every picture was shown."""
        config = resolved.config
        steps = max(config.max_train_steps_ti, config.max_train_steps_tuning)
        shown = steps * config.train_batch_size * config.gradient_accumulation_steps
        if shown < len(dataset.images):
            count = len(dataset.images)
            self.log(f"warning: {steps} steps show {shown} of the {count} pictures; take more steps, or fewer pictures")

    def _token_window(self, resolved: ResolvedConfig) -> TokenWindow:
        """Return the tokens that the base reads of a caption.

        Raises:
            InputError: the trigger word or the new tokens alone are more.
        """
        text = self.base.text
        window = TokenWindow(text.count, text.positions - 2, subject_tokens=len(resolved.tokens))
        if len(resolved.tokens) > window.size:
            expected = f"at most {window.size} names, as the base reads so many tokens"
            raise InputError("placeholder_tokens", resolved.config.placeholder_tokens, expected, code="too_many_tokens")
        return window.for_subject("trigger", resolved.trigger)

    def _context(self, dataset: TrainingDataset, resolved: ResolvedConfig) -> TrainingContext:
        config = resolved.config
        flip, jitter = bool(config.flip), bool(config.color_jitter)
        with self._timed("latents"):
            latents = cache_latents(dataset.images, self.base, flip=flip, color_jitter=jitter, seed=config.seed or 0)
        return TrainingContext(self.base, dataset.images, latents, resolved, self.base.text, autocast=None)

    def _train(self, context: TrainingContext) -> tuple[TrainedAdapter, dict[str, LoopReport]]:
        """Run both stages; the base is as before afterwards."""
        resolved = context.resolved
        generator = torch.Generator().manual_seed(resolved.config.seed or 0)
        adapter = TrainedAdapter(None)
        stages: dict[str, LoopReport] = {}
        callbacks = self._callbacks()
        with ExitStack() as stack:
            if resolved.tokens:
                rows = initial_embeddings(self.base, resolved.tokens, resolved.initializers, generator)
                adapter.tokens = stack.enter_context(added_tokens(self.base, resolved.tokens, rows))
                context = replace(context, text=adapter.tokens.text)
                with self._timed("stage 1"):
                    stages["stage 1"] = train_textual_inversion(context, adapter.tokens, callbacks)
            if resolved.config.max_train_steps_tuning:
                adapter.layers = self._add_layers(stack, resolved, generator)
                with self._timed("stage 2"):
                    stages["stage 2"] = train_lora(context, adapter.layers, adapter.tokens, callbacks)
        return adapter, stages

    def _callbacks(self) -> list[TrainingCallback]:
        return [ProgressReporter(self.on_progress)]

    def _resolve(self, config: TrainConfig) -> ResolvedConfig:
        seed = random.SystemRandom().randrange(2**32) if config.seed is None else config.seed
        word = choose_trigger_word(self.base.text, random.Random(seed))
        trigger = config.trigger or f"{word} {config.class_word}".strip()
        resolved = resolve_config(config, self.base.defaults, trigger, seed)
        self.base.check_side("resolution", resolved.config.resolution or self.base.defaults.resolution)
        return resolved

    def _add_layers(self, stack: ExitStack, resolved: ResolvedConfig, generator: torch.Generator) -> Layers:
        """Add LoRA layers to the UNet and the text encoders until ``stack`` ends; none where the rate is 0."""
        config = resolved.config
        options = LayerOptions(config.lora_rank or 1, config.lora_alpha or 1.0, config.lora_kind)
        layers = {}
        for component, model in self.base.components.items():
            if config.learning_rate_unet if component == "unet" else config.learning_rate_text:
                paths = learning_targets(self.base, component, config.lora_targets)
                layers[component] = stack.enter_context(lora_layers(model, paths, options, generator))
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
