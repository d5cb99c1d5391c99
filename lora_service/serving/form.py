"""The inputs of the two forms, taken from the configs: the one source of the entries and of the command line's options.

``train.py`` and ``predict.py`` repeat them as literals, which ``python -m tools.write_entries`` writes, because Cog's
build reads those files without running them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lora_service.generation.request import GenerateRequest
from lora_service.serving.entries import Mode
from lora_service.training.inputs.config import TrainConfig

_LIMITS = ("ge", "le", "min_length", "max_length")
"""The limits of fields, by the name that ``pydantic.Field`` and ``cog.Input`` share."""
_LIMITS_UNKNOWN_TO_COG = ("gt", "lt", "multiple_of")


@dataclass(frozen=True)
class FormInput:
    """One input of a form.

    Args:
        type: the annotation in the entry, without ``| None``: str, int, float, bool, Path or Secret.
        optional: whether ``None`` may be given, as it is by default.
        limits: ``ge``, ``le``, ``min_length`` and ``max_length`` by name.
    """

    name: str
    type: str
    description: str
    optional: bool = True
    default: Any = None
    choices: tuple[str, ...] = ()
    limits: Mapping[str, int | float] = field(default_factory=dict)

    @staticmethod
    def from_field(name: str, info: FieldInfo) -> FormInput:
        """Return the input of a config's field.

        Raises:
            TypeError: Cog's build cannot read such a field.
        """
        optional = get_origin(info.annotation) in (Union, UnionType)
        kinds = [kind for kind in get_args(info.annotation) if kind is not type(None)] if optional else []
        kind = kinds[0] if optional else info.annotation
        if get_origin(kind) is Literal:
            choices, type_name = get_args(kind), "str"
        else:
            bare = get_args(kind)[0] if hasattr(kind, "__metadata__") else kind
            choices, type_name = _enumerated(info), getattr(bare, "__name__", "")
        unknown = [key for key in _LIMITS_UNKNOWN_TO_COG if any(hasattr(each, key) for each in info.metadata)]
        if unknown or len(kinds) > 1 or type_name not in ("str", "int", "float", "bool"):
            raise TypeError(f"{name} is {info!r}, but Cog knows only str, int, float, bool, choices and {_LIMITS}")
        limits = {key: getattr(each, key) for each in info.metadata for key in _LIMITS if hasattr(each, key)}
        return FormInput(name, type_name, info.description or "", optional, info.default, choices, limits)


def _enumerated(info: FieldInfo) -> tuple[str, ...]:
    """Return the choices of a field whose type is no ``Literal``: JSON schema's own key for them."""
    extra = info.json_schema_extra
    return tuple(extra.get("enum", ())) if isinstance(extra, dict) else ()  # type: ignore[arg-type]


INSTANCE_DATA = FormInput(
    "instance_data",
    "Path",
    "A zip of pictures of what is to be taught; 4 to 30 are enough. This or instance_data_urls.",
)
INSTANCE_DATA_URLS = FormInput(
    "instance_data_urls",
    "str",
    "Links to pictures or zips instead: a JSON list, or one per line, or split by |.",
    optional=False,
    default="",
)
CLASS_DATA = FormInput(
    "class_data",
    "Path",
    "With preservation prior: a zip of other things of the class. Else the base draws some.",
)
LORA = FormInput("lora", "Path", "An uploaded LoRA, or a zip or tar with one; it comes before those of lora_urls.")
REPLICATE_WEIGHTS = FormInput(
    "replicate_weights",
    "str",
    "Link to a training's result: a LoRA or trained_model.tar. It is <1>; lora_urls come after it.",
    optional=False,
    default="",
)
IMAGE = FormInput("image", "Path", "A picture to start from.")
MASK = FormInput("mask", "Path", "With image: white where it is drawn anew, black where it stays.")
ADAPTER_CONDITION_IMAGE = FormInput(
    "adapter_condition_image", "Path", "A picture whose lines, depth or pose the result follows: see adapter_type."
)
API_TOKEN = FormInput("api_token", "Secret", "Token for a private link; it is sent to the link's own host only.")

CONFIGS: Mapping[Mode, type[TrainConfig] | type[GenerateRequest]] = MappingProxyType(
    {"train": TrainConfig, "predict": GenerateRequest}
)
_LAST = ""
_ENTRY_ONLY: Mapping[Mode, Mapping[str, tuple[FormInput, ...]]] = MappingProxyType(
    {
        "train": {"task": (INSTANCE_DATA, INSTANCE_DATA_URLS), "class_prompt": (CLASS_DATA,)},
        "predict": {
            "lora_scales": (LORA,),
            "prompt_strength": (IMAGE, MASK),
            "adapter_type": (ADAPTER_CONDITION_IMAGE,),
            _LAST: (REPLICATE_WEIGHTS, API_TOKEN),
        },
    }
)
"""The inputs that are no fields of a config, by the field that they precede."""

FRONT: Mapping[Mode, tuple[str, ...]] = MappingProxyType(
    {
        "train": (
            "instance_data", "instance_data_urls", "task", "class_word", "trigger", "max_train_steps_ti",
            "max_train_steps_tuning", "preset", "resolution", "lora_rank", "seed",
        ),
        "predict": (
            "prompt", "lora_urls", "lora", "lora_scales", "image", "mask", "prompt_strength", "negative_prompt",
            "num_outputs", "aspect_ratio", "seed", "guidance_scale",
        ),
    }
)  # fmt: skip
"""The inputs that most people need, which a form begins with; the others follow in the order of their config."""


def config_inputs(config: type[BaseModel]) -> list[FormInput]:
    """Return the inputs of a config's fields, in their order."""
    return [FormInput.from_field(name, info) for name, info in config.model_fields.items()]


def form_inputs(mode: Mode) -> list[FormInput]:
    """Return all inputs of an entry, in the order of its form."""
    entry_only, inputs = _ENTRY_ONLY[mode], []
    for each in config_inputs(CONFIGS[mode]):
        inputs += [*entry_only.get(each.name, ()), each]
    inputs += entry_only.get(_LAST, ())
    by_name, front = {each.name: each for each in inputs}, FRONT[mode]
    return [*(by_name[name] for name in front), *(each for each in inputs if each.name not in front)]
