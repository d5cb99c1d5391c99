"""The fields of a config as options of a command: typed, checked, and shown in groups by ``--help``.

The values are checked by pydantic against the field itself, so that a limit has one place and one wording.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import click
from click.shell_completion import CompletionItem
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from lora_service.errors import InputError
from lora_service.generation.request import GenerateRequest
from lora_service.serving.form import CLASS_DATA, FormInput
from lora_service.training.inputs.config import TrainConfig
from lora_service.validation import first_error

Config = type[TrainConfig] | type[GenerateRequest]
CommandFunction = TypeVar("CommandFunction", bound=Callable[..., Any])


def with_underscores(option: str) -> str:
    """Return the input's own name for an option: ``--lora-rank`` means ``--lora_rank``."""
    return option.replace("-", "_")


def config_options(
    config: Config, *, without: Sequence[str] = (), only: Sequence[str] = ()
) -> Callable[[CommandFunction], CommandFunction]:
    """Return a decorator that adds an option for each field of a config, in the order of its groups.

    An option that is not given is ``None``, whatever the field's default is.

    Args:
        without: fields that get no option.
        only: the fields that get one; empty: all.
    """

    def decorate(function: CommandFunction) -> CommandFunction:
        fields = [(name, group) for group, names in config.GROUPS.items() for name in names]
        for name, group in reversed(fields):
            if name not in without and (not only or name in only):
                function = _option(name, config.model_fields[name], group)(function)
        return function

    return decorate


class GroupedOption(click.Option):
    """An option that ``--help`` shows under the heading ``group``."""

    def __init__(self, *names: Any, group: str, **attributes: Any) -> None:
        super().__init__(*names, **attributes)
        self.group = group


def class_data_option(function: CommandFunction) -> CommandFunction:
    """Add the option for the zip of class pictures."""
    return click.option(
        "--class_data", cls=GroupedOption, group="Preservation",
        type=click.Path(exists=True, path_type=Path), help=CLASS_DATA.description,
    )(function)  # fmt: skip


class ConfigCommand(click.Command):
    """A command with a config's fields as options.

    Its help shows the options in groups, and a boolean option may be followed by its value: ``--flip false`` and
    ``--flip=false`` mean ``--no-flip``.
    """

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.context_settings.setdefault("token_normalize_func", with_underscores)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and not isinstance(parameter, click.Argument):
                groups.setdefault(getattr(parameter, "group", "Other options"), []).append(record)
        for group, records in groups.items():
            with formatter.section(group):
                formatter.write_dl(records)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, self._without_boolean_values(args))

    def _without_boolean_values(self, args: list[str]) -> list[str]:
        """Return the arguments with ``--flip true`` and ``--flip=true`` as ``--flip``, and false as ``--no-flip``."""
        booleans = {each.name for each in self.params if isinstance(each, click.Option) and each.secondary_opts}
        flags: list[str] = []
        remaining = list(args)
        while remaining:
            argument = remaining.pop(0)
            option, equals, value = argument.partition("=")
            name = with_underscores(option.removeprefix("--"))
            if not option.startswith("--") or name not in booleans:
                flags.append(argument)
                continue
            if not equals:
                value = remaining.pop(0) if remaining and _as_bool(remaining[0]) is not None else "true"
            boolean = _as_bool(value)
            if boolean is None:
                raise InputError(name, value, "true or false")
            flags.append(f"--{name}" if boolean else f"--no-{name}")
        return flags


class FieldType(click.ParamType[Any]):
    """The values that a field of a config accepts, as the type of an option."""

    def __init__(self, form_input: FormInput, info: FieldInfo) -> None:
        self.name = {"int": "integer", "float": "number", "str": "text"}[form_input.type]
        self._form_input = form_input
        self._info = info

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value as the field takes it.

        Raises:
            InputError: the field does not accept it.
        """
        annotation: Any = self._info.annotation
        for constraint in self._info.metadata:
            annotation = Annotated[annotation, constraint]
        try:
            return TypeAdapter(annotation).validate_python(value)
        except ValidationError as error:
            raise InputError(self._form_input.name, value, first_error(error).expected) from error

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        choices = self._form_input.choices
        return f"[{'|'.join(choices)}]" if choices else self.name.upper()

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(choice) for choice in self._form_input.choices if choice.startswith(incomplete)]


def _option(name: str, info: FieldInfo, group: str) -> Callable[[CommandFunction], CommandFunction]:
    form_input = FormInput.from_field(name, info)
    text = _help(form_input)
    if form_input.type == "bool":
        return click.option(f"--{name}/--no-{name}", name, cls=GroupedOption, group=group, default=None, help=text)
    kind = FieldType(form_input, info)
    return click.option(f"--{name}", name, cls=GroupedOption, group=group, type=kind, help=text)


def _help(form_input: FormInput) -> str:
    """Return the description with limits and default at its end, where ``--help`` has them."""
    default, description = "", form_input.description
    if description.startswith("Empty: "):
        default, _, description = description.removeprefix("Empty: ").partition(". ")
    elif form_input.type == "bool":
        default = "yes" if form_input.default else "no"
    elif form_input.default not in (None, ""):
        default = str(form_input.default)
    notes = []
    if "ge" in form_input.limits:
        notes.append(f"{form_input.limits['ge']} to {form_input.limits['le']}")
    if default:
        notes.append(f"default: {default}")
    return f"{description}  [{'; '.join(notes)}]" if notes else description


def _as_bool(word: str) -> bool | None:
    """Return the boolean that a word means to a config too; ``None`` if it is no such word."""
    return click.BOOL.str_to_bool(word) if word else None
