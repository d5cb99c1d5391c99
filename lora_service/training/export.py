"""The export of a trained adapter: LoRA layers and tokens to the one file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lora_service import __version__
from lora_service.dataset.report import DatasetReport
from lora_service.errors import DivergedError, LoraFileError
from lora_service.lora.files import write_lora
from lora_service.lora.key_mapping import strip_text_model
from lora_service.lora.weights import LoraWeights
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.training.config import ResolvedConfig
from lora_service.training.loop import LoopReport
from lora_service.training.lora_layers import LOKR_FACTOR, Layers
from lora_service.training.lora_metadata import MODELSPEC_PREDICTIONS, LoraMetadata, metadata_strings
from lora_service.training.textual_inversion import AddedTokens

_LYCORIS_ARGS: Mapping[str, Mapping[str, str]] = {
    "dora": {"algo": "lora", "dora_wd": "True"},
    "lokr": {"algo": "lokr", "factor": str(LOKR_FACTOR)},
}


@dataclass
class TrainedAdapter:
    """The result of the stages: the new tokens and the LoRA layers, while they are in the base."""

    tokens: AddedTokens | None
    layers: Layers = field(default_factory=dict)

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
    config = resolved.config
    report = {
        "base": base.defaults.title,
        "settings": resolved.as_json(),
        "prompt": resolved.prompt,
        "pictures": dataset.counts(),
        "losses": {name: stage.losses for name, stage in stages.items()},
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    side, rank = config.resolution or 0, config.lora_rank or 0
    alpha = config.lora_alpha or 0.0
    header = LoraMetadata(
        architecture=base.defaults.architecture,
        base_version=base.defaults.version,
        base_name=base.defaults.title,
        # Unique per training: A1111 calls a LoRA by its title.
        title=f"{(resolved.trigger or resolved.config.task).replace(' ', '-')}-{config.seed or 0:08x}",
        trigger=resolved.trigger,
        resolution=(side, side),
        rank=rank,
        alpha=alpha * rank**0.5 if config.lora_kind == "rslora" else alpha,
        steps=config.max_train_steps_tuning,
        learning_rate=config.learning_rate_unet or 0.0,
        prediction_type=MODELSPEC_PREDICTIONS[base.prediction_type],
        usage_hint=f"Write {resolved.trigger!r} in the prompt, like: {resolved.prompt_with(resolved.trigger)}"
        if resolved.trigger
        else "",
        network_args=_LYCORIS_ARGS.get(config.lora_kind, {}),
    )
    metadata = metadata_strings(header, __version__) | {"lora_service.report": json.dumps(report, sort_keys=True)}
    try:
        write_lora(path, adapter.weights(resolved.tokens, metadata), format=config.lora_format)
    except LoraFileError as error:
        if error.code != "not_finite":
            raise
        raise DivergedError(
            "What was learned has grown beyond the file's numbers (fp16); try lower learning rates, or fewer steps."
        ) from error
    return path
