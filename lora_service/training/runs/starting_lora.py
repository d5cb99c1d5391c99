"""A LoRA that a training goes on from: its layers, its tokens and its trigger word."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from lora_service.errors import InputError, LoraFileError, WrongBaseError
from lora_service.lora.key_mapping import strip_text_model
from lora_service.lora.safetensors_header import shortened
from lora_service.lora.token_embeddings import TokenEmbeddings
from lora_service.lora.weights import LoraLayer, LoraWeights
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.quantization import weight_shape
from lora_service.training.inputs.config import PLACEHOLDER, TrainConfig
from lora_service.training.inputs.resolved_config import ResolvedConfig
from lora_service.training.runs.run_folder import RunFolder
from lora_service.training.runs.state_file import read_state


@dataclass(frozen=True, eq=False)
class StartingLora:
    """The parts of a LoRA that a training can go on from.

    Attributes:
        layers: component -> module path, without ``text_model.`` -> its change.
        rows: token name -> text encoder -> row ``(width,)``.
        rank, alpha: those of layers that the LoRA does not have, 0 where it has none.
    """

    layers: Mapping[str, Mapping[str, LoraLayer]]
    rows: Mapping[str, Mapping[str, Tensor]]
    trigger: str = ""
    rank: int = 0
    alpha: float = 0.0

    @staticmethod
    def of(weights: LoraWeights) -> StartingLora:
        """Take a LoRA of any file.

        Raises:
            LoraFileError: a change is none that goes on learning here, as LoKr (code ``cannot_go_on``).
        """
        layers: dict[str, dict[str, LoraLayer]] = {}
        for component, path, change in weights:
            if not isinstance(change, LoraLayer) or change.mid is not None:
                kind = change.kind if not isinstance(change, LoraLayer) else "LoRA with a Tucker core"
                raise LoraFileError(
                    f"A training goes on from plain LoRA layers only, and {component}.{shortened(path)} is a change of "
                    f"the kind {kind}.",
                    code="cannot_go_on",
                )
            layers.setdefault(component, {})[path] = change
        return StartingLora(layers, weights.embeddings, weights.trigger or "", weights.rank, weights.alpha)

    def check(self, base: DiffusionBase) -> None:
        """Check that all of it fits the base.

        Raises:
            WrongBaseError: it does not.
            LoraFileError: a change is of a module that cannot learn here (code ``cannot_go_on``).
        """
        TokenEmbeddings(base.text.encoders, base.tokenizers).check(self.rows)
        missing = next((name for name, rows in self.rows.items() if set(rows) != set(base.text.learning)), None)
        if missing is not None:
            raise WrongBaseError(f"The LoRA's token {missing!r} lacks a row for a text encoder of {base.name}.")
        for component, layers in self.layers.items():
            modules = self._modules(component, base)
            for path, layer in layers.items():
                _check_layer(f"{component}.{shortened(path)}", layer, modules.get(path), base)

    def starts(self, component: str, base: DiffusionBase) -> dict[str, LoraLayer]:
        """Return the changes of a component by the paths of the base's modules."""
        modules = self._modules(component, base)
        names = {id(module): name for name, module in base.components[component].named_modules()}
        return {names[id(modules[path])]: layer for path, layer in self.layers.get(component, {}).items()}

    def _modules(self, component: str, base: DiffusionBase) -> dict[str, nn.Module]:
        model = base.components.get(component)
        return {strip_text_model(name): module for name, module in model.named_modules()} if model else {}

    def fill(self, config: TrainConfig) -> TrainConfig:
        """Return ``config`` with what it leaves open taken from the LoRA: trigger word, rank and alpha.

        Raises:
            InputError: the LoRA's trigger word cannot be one here.
        """
        if not config.trigger and self.trigger:
            config = TrainConfig.of(config.model_dump() | {"trigger": self.trigger})
        if not self.rank or config.lora_rank is not None:
            return config
        return config.model_copy(update={"lora_rank": self.rank, "lora_alpha": config.lora_alpha or self.alpha})

    def resolve(self, resolved: ResolvedConfig) -> ResolvedConfig:
        """Return ``resolved`` with the LoRA's tokens, where it has some; they stay in the file without stage 1 too.

        Raises:
            InputError: several subjects are taught, each with tokens of its own (code ``several_subjects``).
        """
        if not self.rows:
            return resolved
        if len(resolved.subjects) > 1:
            triggers = ", ".join(subject.trigger for subject in resolved.subjects)
            expected = f"left out, or a LoRA without tokens, as the folders name several subjects ({triggers})"
            raise InputError("start_from", " ".join(self.rows), expected, code="several_subjects")
        names = self.token_names
        config = resolved.config.model_copy(update={"placeholder_tokens": "|".join(names)})
        subject = replace(resolved.subjects[0], tokens=names, initializers=())
        return replace(resolved, config=config, subjects=(subject,))

    @property
    def token_names(self) -> tuple[str, ...]:
        """The names of its tokens; ``<s1>``, ``<s2>`` … where some have no brackets, as an embedding's have none."""
        if all(PLACEHOLDER.fullmatch(name) for name in self.rows):
            return tuple(self.rows)
        return tuple(f"<s{number}>" for number in range(1, len(self.rows) + 1))

    def warnings(self, config: TrainConfig) -> list[str]:
        """Return a sentence for each input of ``config``, as given, that the LoRA decides."""
        inputs = [name for name in ("lora_rank", "lora_alpha") if self.rank and getattr(config, name) is not None]
        lines = []
        if inputs:
            lines.append(f"{' and '.join(inputs)}: the layers of start_from keep theirs; only new layers follow")
        names = [
            name
            for name in ("placeholder_tokens", "initializer_tokens")
            if self.rows and getattr(config, name) != TrainConfig.model_fields[name].default
        ]
        if names:
            lines.append(f"{' and '.join(names)} no effect, as start_from brings the tokens {' '.join(self.rows)}")
        if self.rows and self.token_names != tuple(self.rows):
            lines.append(f"the tokens {' '.join(self.rows)} of start_from are called {''.join(self.token_names)} here")
        return lines

    def rows_by_encoder(self) -> dict[str, list[Tensor]]:
        """Return text encoder -> the rows of the tokens in their order."""
        encoders = next(iter(self.rows.values()), {})
        return {encoder: [rows[encoder].float() for rows in self.rows.values()] for encoder in encoders}

    @property
    def digest(self) -> str:
        """The hash of all its tensors and names."""
        total = hashlib.sha256()
        for key, value in _flat(self.state_dict()):
            total.update(key.encode())
            data = value.contiguous().flatten().float().numpy().tobytes() if isinstance(value, Tensor) else repr(value)
            total.update(data if isinstance(data, bytes) else data.encode())
        return total.hexdigest()

    def state_dict(self) -> dict[str, Any]:
        """Return all of it, for a copy in the run folder."""
        layers = {
            component: {path: {"down": each.down, "up": each.up, "alpha": each.alpha} for path, each in by_path.items()}
            for component, by_path in self.layers.items()
        }
        rows = {name: dict(by_encoder) for name, by_encoder in self.rows.items()}
        return {"layers": layers, "rows": rows, "trigger": self.trigger, "rank": self.rank, "alpha": self.alpha}

    @staticmethod
    def read(run: RunFolder) -> StartingLora:
        """Read the copy in a run folder.

        Raises:
            InputError: it is damaged (code ``unreadable_run``).
        """
        try:
            return StartingLora.from_state(read_state(run.start))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            expected = f"a run folder whose {run.start.name} can be read ({error})"
            raise InputError("resume", str(run.path), expected, code="unreadable_run") from error

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> StartingLora:
        """Return the LoRA of a :meth:`state_dict`."""
        layers = {
            component: {path: LoraLayer(**each) for path, each in by_path.items()}
            for component, by_path in state["layers"].items()
        }
        return StartingLora(**{**state, "layers": layers})


def _check_layer(name: str, layer: LoraLayer, module: nn.Module | None, base: DiffusionBase) -> None:
    if module is None:
        raise WrongBaseError(f"The LoRA changes {name}, which {base.name} does not have.")
    if not isinstance(module, nn.Linear | nn.Conv2d):
        raise LoraFileError(
            f"The LoRA changes {name}, a {type(module).__name__}, which cannot learn.", code="cannot_go_on"
        )
    weight = weight_shape(module)
    if layer.shape[:2] != weight[:2] or layer.down[0, 0].numel() != math.prod(weight[2:]):
        raise WrongBaseError(f"The LoRA's {name} is of the shape {layer.shape}, and {base.name}'s is of {weight}.")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in tree.items():
        pairs += _flat(value, f"{prefix}{key}/") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return pairs
