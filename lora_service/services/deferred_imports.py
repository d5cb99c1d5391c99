"""Defers imports that libraries make for classes and functions that jobs do not use, until one is used after all.

transformers and diffusers import PyTorch's compiler and half of scipy to name a class in an ``isinstance``, to decorate
a function that is never compiled, or for an option of a scheduler that training does not have. Python's own
`importlib.util.LazyLoader` defers ``import scipy.stats``, but not ``from scipy.optimize import linear_sum_assignment``,
which is how most of them do it.

For a process that is ours alone, a server's worker: other code may ask which modules there are.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, Union

Names = Mapping[str, Sequence[str]]
"""Modules, and of each the names that are taken out of it: ``from module import name``."""

SCIPY: Names = {
    "scipy.integrate": (),  # diffusers' KLMS
    "scipy.optimize": ("linear_sum_assignment",),  # transformers' losses of detecting objects
    "scipy.stats": (),  # diffusers' beta schedule
}
COMPILER: Names = {
    "torch._dynamo": ("disable", "allow_in_graph", "assume_constant_result", "graph_break", "is_compiling"),
    "torch._dynamo._trace_wrapped_higher_order_op": ("TransformGetItemToIndex",),
    "torch._dynamo.eval_frame": ("OptimizedModule",),
    "torch.distributed.tensor": ("DTensor",),
    "torch.distributed.fsdp": ("CPUOffload", "FullyShardedDataParallel", "ShardingStrategy"),
    "torch.distributed.fsdp.wrap": ("transformer_auto_wrap_policy",),
}
"""PyTorch's compiler, which only ``COMPILE`` uses, and tensors of several machines, which it imports."""
PEFT: Names = {
    "peft": ("PeftModel",),
    "peft.helpers": ("disable_input_dtype_casting",),
    "peft.tuners": (),
    "peft.tuners.tuners_utils": ("BaseTunerLayer",),
}
CLOUD: Names = {"boto3": ()}
"""Imported by accelerate's command line where it is installed."""


def _undecorated(function: Any = None, *arguments: Any, **options: Any) -> Any:
    return function if function is not None else lambda decorated: decorated


_WITHOUT_COMPILER: Mapping[str, Callable[..., Any]] = {
    "torch._dynamo.disable": _undecorated,
    "torch._dynamo.allow_in_graph": _undecorated,
    "torch._dynamo.assume_constant_result": _undecorated,
    "torch._dynamo.graph_break": lambda: None,
    "torch._dynamo.is_compiling": lambda: False,
}
"""What functions do while there is no compiler: what is meant for it alone has no effect."""


def defer_imports(*groups: Names) -> None:
    """Let the imports of modules wait for their first use; those that are imported already stay.

    A class of a module that was never imported has no instances, so ``isinstance`` says no without importing it. What
    only the compiler takes note of does nothing: a decorator returns the function as it is. Whatever else is done with
    a name, and a name that is not listed, imports the module, and ends the deferral of all modules of its library.
    """
    names = {module: listed for group in groups for module, listed in group.items() if module not in sys.modules}
    sys.meta_path.insert(0, _Finder(names))


def run_alone() -> None:
    """Tell transformers that PyTorch has no tensors of several machines, the import of which takes a quarter second.

    It remembers the answer; a worker is one process.
    """
    import torch.distributed
    from transformers.utils.import_utils import is_torch_distributed_available

    is_available = torch.distributed.is_available
    torch.distributed.is_available = lambda: False
    try:
        is_torch_distributed_available()
    finally:
        torch.distributed.is_available = is_available


class _Finder(MetaPathFinder, Loader):
    """Finds stand-ins for modules."""

    def __init__(self, names: Names) -> None:
        self._names = dict(names)
        self._lock = threading.RLock()

    def defers(self, module: str) -> bool:
        """Return whether an import of ``module`` gives a stand-in."""
        return module in self._names

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if self.defers(fullname):
            return ModuleSpec(fullname, self, is_package=True)
        parent, _, _ = fullname.rpartition(".")
        if not isinstance(sys.modules.get(parent), _DeferredModule):
            return None
        package = self.load(parent)
        if fullname in sys.modules:  # the package has imported it by itself
            return ModuleSpec(fullname, _Imported(sys.modules[fullname]))
        return PathFinder.find_spec(fullname, package.__path__)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _DeferredModule(spec.name, self, self._names.get(spec.name, ()))

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: what the module holds is imported by its first use."""

    def load(self, module: str) -> ModuleType:
        """Import a module, and with it all of its library that waits; from now on nothing of that is deferred."""
        library, _, _ = module.partition(".")
        with self._lock:
            waiting = [name for name in self._names if name.partition(".")[0] == library]
            for name in waiting:
                del self._names[name]
            asked_for = [name for name in waiting if _remove(name)]
        for name in (module, *asked_for):
            importlib.import_module(name)
        return sys.modules[module]


def _remove(name: str) -> bool:
    """Remove a stand-in from where an import put it; return False if there was no import of it."""
    stand_in = sys.modules.get(name)
    if not isinstance(stand_in, _DeferredModule):
        return False
    del sys.modules[name]
    parent, _, child = name.rpartition(".")
    if parent in sys.modules and vars(sys.modules[parent]).get(child) is stand_in:
        delattr(sys.modules[parent], child)
    return True


class _Imported(Loader):
    """Gives an import that is under way the module that its package has imported meanwhile."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


class _DeferredModule(ModuleType):
    """Stands in for a module that is not imported yet."""

    def __init__(self, name: str, finder: _Finder, names: Sequence[str]) -> None:
        super().__init__(name)
        self.__dict__["_finder"] = finder
        for listed in names:
            self.__dict__[listed] = _DeferredName(finder, name, listed)

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        if self._finder.defers(child := f"{self.__name__}.{attribute}"):
            return importlib.import_module(child)
        return getattr(self._finder.load(self.__name__), attribute)


class _DeferredName:
    """Stands in for a class or function of a module that is not imported yet."""

    def __init__(self, finder: _Finder, module: str, name: str) -> None:
        self._finder, self._module, self._name = finder, module, name

    def _is_imported(self) -> bool:
        module = sys.modules.get(self._module)
        return module is not None and not isinstance(module, _DeferredModule)

    def _load(self) -> Any:
        return getattr(self._finder.load(self._module), self._name)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        instead = _WITHOUT_COMPILER.get(f"{self._module}.{self._name}")
        function = instead if instead and not self._is_imported() else self._load()
        return function(*arguments, **options)

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return getattr(self._load(), attribute)

    def __instancecheck__(self, instance: object) -> bool:
        return self._is_imported() and isinstance(instance, self._load())

    def __mro_entries__(self, bases: tuple[object, ...]) -> tuple[Any]:
        return (self._load(),)

    def __or__(self, other: Any) -> Any:  # in annotations
        return Union[self, other]  # noqa: UP007
