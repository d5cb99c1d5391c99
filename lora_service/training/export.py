"""The export of a trained adapter: LoRA layers and tokens to the one file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from lora_service import __version__
from lora_service.dataset.report import DatasetReport
from lora_service.errors import DivergedError, LoraFileError
from lora_service.lora.files import write_lora
from lora_service.lora.header_facts import REPORT_KEY
from lora_service.lora.key_mapping import strip_text_model
from lora_service.lora.weights import LoraSubject, LoraWeights
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.registry import REGISTRY
from lora_service.training.adapters.lora_layers import LOKR_FACTOR, Layers
from lora_service.training.adapters.lora_metadata import MODELSPEC_PREDICTIONS, LoraMetadata, metadata_strings
from lora_service.training.adapters.textual_inversion import AddedTokens
from lora_service.training.callbacks.held_out import HELD_OUT_LOSS
from lora_service.training.inputs.resolved_config import ResolvedConfig
from lora_service.training.optimization.loop import LoopReport, StageRun

_LYCORIS_ARGS: Mapping[str, Mapping[str, str]] = {
    "dora": {"algo": "lora", "dora_wd": "True"},
    "lokr": {"algo": "lokr", "factor": str(LOKR_FACTOR)},
}


@dataclass
class TrainedAdapter:
    """The result of the stages: the new tokens and the LoRA layers, while they are in the base.

    Attributes:
        start_from: hash of the LoRA that it went on from, "" for none.
        samples: what the header says of the samples, None where none were drawn.
        thumbnail: data URL of a picture that shows what was learned, "" for none.
    """

    tokens: AddedTokens | None
    layers: Layers = field(default_factory=dict)
    start_from: str = ""
    samples: Mapping[str, Any] | None = None
    thumbnail: str = ""

    def weights(self, names: tuple[str, ...], metadata: Mapping[str, str]) -> LoraWeights:
        """Copy it into a LoRA in memory; ``names`` are the tokens'."""
        layers = {
            component: {strip_text_model(path): layer.change() for path, layer in by_path.items()}
            for component, by_path in self.layers.items()
            if by_path
        }
        learned = {} if self.tokens is None else self.tokens.embeddings
        rows = {encoder: embedding.rows.detach().cpu() for encoder, embedding in learned.items()}
        embeddings = {name: {encoder: row[i] for encoder, row in rows.items()} for i, name in enumerate(names)}
        return LoraWeights(layers=layers, embeddings=embeddings, metadata=metadata)


def export_lora(
    path: Path,
    adapter: TrainedAdapter,
    base: DiffusionBase,
    resolved: ResolvedConfig,
    dataset: DatasetReport,
    stages: Mapping[str, LoopReport],
) -> Path:
    """Write the LoRA file. No clock, path or temporary name is in it: the same training gives the same bytes.

    Raises:
        DivergedError: a number is beyond what the file can hold.
    """
    report = _report(adapter, base, resolved, dataset, stages)
    header = metadata_strings(_header(adapter, base, resolved, stages), __version__)
    metadata = header | _bases(base) | {REPORT_KEY: json.dumps(report, sort_keys=True)}
    try:
        write_lora(path, adapter.weights(resolved.tokens, metadata), format=resolved.config.lora_format)
    except LoraFileError as error:
        if error.code != "not_finite":
            raise
        raise DivergedError(
            "What was learned has grown beyond the file's numbers (fp16); try lower learning rates, or fewer steps."
        ) from error
    return path


def _report(
    adapter: TrainedAdapter,
    base: DiffusionBase,
    resolved: ResolvedConfig,
    dataset: DatasetReport,
    stages: Mapping[str, LoopReport],
) -> dict[str, object]:
    """Return the training as the header tells it, for JSON."""
    report: dict[str, object] = {
        "base": base.defaults.title,
        "base_family": base.family.name,
        "settings": resolved.as_json(),
        "prompt": resolved.prompt,
        "pictures": dataset.counts(),
        "losses": {name: stage.losses for name, stage in stages.items()},
        "held_out_losses": {
            name: [(step, round(value, 5)) for step, value in stage.measurements.get(HELD_OUT_LOSS, ())]
            for name, stage in stages.items()
        },
        "kept_steps": {name: stage.kept_step for name, stage in stages.items()},
        "samples": adapter.samples,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    report |= _exceptions(adapter, stages)
    if parts := {name: stage.parts for name, stage in stages.items() if stage.parts}:
        report["loss_parts"] = parts
    return report


def _header(
    adapter: TrainedAdapter, base: DiffusionBase, resolved: ResolvedConfig, stages: Mapping[str, LoopReport]
) -> LoraMetadata:
    """Return the facts that other tools read too."""
    config = resolved.config
    side, rank = config.resolution or 0, config.lora_rank or 0
    alpha = config.lora_alpha or 0.0
    return LoraMetadata(
        architecture=base.defaults.architecture,
        base_version=base.defaults.version,
        base_name=base.defaults.title,
        title=resolved.title,
        subjects=tuple(LoraSubject(subject.trigger, subject.tokens) for subject in resolved.subjects),
        resolution=(side, side),
        rank=rank,
        alpha=alpha * rank**0.5 if config.lora_kind == "rslora" else alpha,
        steps=stages["stage 2"].steps if "stage 2" in stages else 0,
        learning_rate=config.learning_rate_unet or 0.0,
        prediction_type=MODELSPEC_PREDICTIONS[base.prediction_type],
        clip_skip=config.clip_skip,
        usage_hint=_usage_hint(resolved),
        thumbnail=adapter.thumbnail,
        network_args=_LYCORIS_ARGS.get(config.lora_kind, {}),
    )


@dataclass(frozen=True)
class IntermediateFile:
    """Writes LoRA files of what is learned so far, while the training goes on.

    Attributes:
        folder: receives the files, each named after the LoRA and its step.
        stages: the reports of the stages before.
    """

    folder: Path
    adapter: TrainedAdapter
    base: DiffusionBase
    resolved: ResolvedConfig
    dataset: DatasetReport
    stages: Mapping[str, LoopReport]
    log: Callable[[str], None]

    def write(self, stage: StageRun) -> None:
        """Write the file of a stage's state; one that cannot be written does not end the training."""
        resolved = self.resolved if self.adapter.layers else self.resolved.without_stage_2()
        number = stage.spec.name.partition(" (")[0]
        path = self.folder / f"{resolved.title}-{number.replace(' ', '-')}-step-{stage.step:06d}.safetensors"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with stage.evaluating():
                reports = {**self.stages, number: stage.report()}
                export_lora(path, self.adapter, self.base, resolved, self.dataset, reports)
        except (OSError, DivergedError) as error:
            self.log(f"warning: the file of {number}, step {stage.step} could not be saved: {error}")
        else:
            self.log(f"saved what was learned by {number}, step {stage.step}: {self.folder.name}/{path.name}")


def _bases(base: DiffusionBase) -> dict[str, str]:
    """Return the bases of a pair of which one is trained and the other, distilled, is drawn with; {} without a pair."""
    trained = REGISTRY[base.defaults.trains_on].defaults.title if base.defaults.trains_on else base.defaults.title
    twin = base.defaults.draws_with
    if not twin and not base.defaults.trains_on:
        return {}
    drawn = REGISTRY[twin].defaults.title if twin in REGISTRY else base.defaults.title
    return {"lora_service.train_base": trained, "lora_service.draw_base": drawn}


def _exceptions(adapter: TrainedAdapter, stages: Mapping[str, LoopReport]) -> dict[str, object]:
    """Return what the header says of a training that was no usual one."""
    facts: dict[str, object] = {
        "start_from": adapter.start_from,
        "stopped": {
            name: f"step {each.steps}: {each.stop_reason}" for name, each in stages.items() if each.stop_reason
        },
        "diverged_at": {name: each.diverged_at for name, each in stages.items() if each.diverged_at},
    }
    return {name: fact for name, fact in facts.items() if fact}


def job_state(adapter: TrainedAdapter, stages: Mapping[str, LoopReport]) -> dict[str, Any]:
    """Return what a checkpoint holds beside the stage's own state: the tokens' rows, and earlier stages' reports."""
    tokens = adapter.tokens.rows() if adapter.tokens else {}
    return {"tokens": tokens, "stages": {name: asdict(stage) for name, stage in stages.items()}}


def _usage_hint(resolved: ResolvedConfig) -> str:
    """Return a sentence for other tools, which know the trigger words alone; "" without any."""
    if not resolved.trigger:
        return ""
    words = " or ".join(repr(subject.trigger) for subject in resolved.subjects)
    return f"Write {words} in the prompt, like: {resolved.prompt_with(resolved.trigger)}"
