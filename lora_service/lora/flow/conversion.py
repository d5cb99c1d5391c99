"""A file's changes, under any names <-> changes of the modules of diffusers' class, and back to the original's names.

Fused projections are split into those of diffusers' class and joined again, and where the original has shift before
scale the halves are swapped; the changes of the weights stay exactly the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lora_service.errors import LoraFileError
from lora_service.lora.flow.names import Module, TransformerFamily
from lora_service.lora.flow.rows import Rows, RowsOf, joined, parts, take_rows
from lora_service.lora.safetensors_header import shortened
from lora_service.lora.weights import BIAS, WeightChange

Changes = Mapping[str, WeightChange]


@dataclass(frozen=True)
class NamedChange:
    """A change under the name that it is written under.

    Attributes:
        is_path: the name is one of diffusers' class, as the original's module cannot hold the change.
    """

    name: str
    change: WeightChange
    is_path: bool


def to_paths(family: TransformerFamily, changes: Changes) -> tuple[dict[str, WeightChange], list[str]]:
    """Return module path of diffusers' class -> change, and the names that were left out.

    Some files hold their modules twice, under both names; then the original's is left out.

    Raises:
        LoraFileError: the family has no module of a name (``unknown_key``), two names are of one module
            (``duplicate_tensor``), or a change cannot be split (``shape_mismatch``, ``unsupported_kind``).
    """
    found = {name: _found(family, name) for name in changes}
    result: dict[str, WeightChange] = {}
    doubles: list[str] = []
    for name in sorted(changes, key=lambda name: found[name].part is None):  # paths first, else in the file's order
        ending = BIAS if name.endswith(BIAS) else ""
        paths = [path + ending for path in found[name].paths]
        if found[name].part is None and all(path in result for path in paths) and _are_paths(found, paths):
            doubles.append(name)
            continue
        for path, change in zip(paths, _changes_of(name, found[name], changes[name]), strict=True):
            if path in result:
                raise LoraFileError(
                    f"The LoRA has two changes of {shortened(path)}, one of them as {shortened(name)}; keep one.",
                    code="duplicate_tensor",
                )
            if change is not None:
                result[path] = change
    return result, doubles


def to_originals(family: TransformerFamily, changes: Changes) -> list[NamedChange]:
    """Return the changes under the original's names; under paths where no original module can hold them exactly.

    Raises:
        LoraFileError: the family has no module of a path (``unknown_key``).
    """
    by_original: dict[str, dict[str, WeightChange]] = {}
    modules: dict[str, Module] = {}
    for path, change in changes.items():
        module = family.find_path(path.removesuffix(BIAS))
        if module is None:
            raise _unknown(family, path)
        original = module.original + (BIAS if path.endswith(BIAS) else "")
        modules[original] = module
        by_original.setdefault(original, {})[path] = change
    return [each for name, module in modules.items() for each in _written(name, module, by_original[name])]


def _written(name: str, module: Module, changes: Changes) -> list[NamedChange]:
    entry, ending = module.entry, BIAS if name.endswith(BIAS) else ""
    paths = [path.format(module.number) + ending for path in entry.paths]
    given = [changes.get(path) for path in paths]
    whole = joined(given, entry.shares) if len(paths) > 1 else _swapped_back(name, module, changes[paths[0]])
    if whole is not None:
        return [NamedChange(name, whole, is_path=False)]
    return [NamedChange(path, change, is_path=True) for path, change in zip(paths, given, strict=True) if change]


def _found(family: TransformerFamily, name: str) -> Module:
    module = family.find(name.removesuffix(BIAS))
    if module is None:
        raise _unknown(family, name)
    return module


def _are_paths(found: Mapping[str, Module], paths: list[str]) -> bool:
    """Return True if all of these paths were in the file under such a name, and none comes from an original's."""
    named = {path for module in found.values() if module.part is not None for path in module.paths}
    return all(path.removesuffix(BIAS) in named for path in paths)


def _changes_of(name: str, module: Module, change: WeightChange) -> list[WeightChange | None]:
    """Return the changes of a module's paths, in their order."""
    if module.part is not None:
        return [change]
    if len(module.entry.paths) > 1:
        return parts(name, change, module.entry.shares)
    rows = _swap(name, module, change)
    return [change if rows is None else take_rows(name, change, rows)]


def _swapped_back(name: str, module: Module, change: WeightChange) -> WeightChange:
    rows = _swap(name, module, change)
    if rows is None:
        return change
    if isinstance(change, RowsOf):
        return change.inner  # it was swapped when it was read
    return take_rows(name, change, rows)


def _swap(name: str, module: Module, change: WeightChange) -> Rows | None:
    """Return the two halves of shift and scale in the other order; None for a module that has none, or has more parts.

    Raises:
        LoraFileError: it is a bias alone that may have or not have them (``unsupported_kind``).
    """
    entry, shape = module.entry, change.shape
    if not entry.swapped:
        return None
    if len(shape) == 1 and module.number is not None:
        raise LoraFileError(
            f"The LoRA's module {shortened(name)} changes the bias of a modulation, whose order depends on the base; "
            "it is not read.",
            code="unsupported_kind",
        )
    if len(shape) > 1 and shape[0] != 2 * shape[1]:
        return None
    half = shape[0] // 2
    return ((half, 2 * half), (0, half))


def _unknown(family: TransformerFamily, name: str) -> LoraFileError:
    return LoraFileError(
        f"The LoRA is for {family.title}, which has no module {shortened(name)!r} that a LoRA can change.",
        code="unknown_key",
    )
