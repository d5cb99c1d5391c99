"""Stand-ins for modules: what is asked of them without an import, and what imports them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_service.services.deferred_imports import defer_imports
from lora_service.services.worker import collector_paused

MODULES = {"large": ("Shape",), "large.parts": ("count",)}


@pytest.fixture(autouse=True)
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package ``large``, whose imports are deferred, and ``large.other``, of which nothing is said."""
    package = tmp_path / "large"
    package.mkdir()
    (package / "__init__.py").write_text("from large import other\nclass Shape:\n    sides = 4\nVALUE = 7\n")
    (package / "parts.py").write_text("def count():\n    return 3\n")
    (package / "other.py").write_text("NAME = 'other'\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    defer_imports(MODULES)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "large"]:
        del sys.modules[name]


def is_imported() -> bool:
    return any(getattr(module, "__file__", None) for name, module in sys.modules.items() if name == "large")


def test_names_and_annotations_import_nothing() -> None:
    from large import Shape  # type: ignore[import-not-found]
    from large.parts import count  # type: ignore[import-not-found]

    def area(shape: Shape | None, other: int | Shape = 0) -> None: ...  # type: ignore[valid-type]

    assert not isinstance(3, Shape)
    assert not isinstance(3, (str, Shape))
    assert callable(count)
    assert not is_imported()


def test_a_call_imports() -> None:
    from large.parts import count

    assert count() == 3
    assert is_imported()


def test_a_class_is_the_modules_own_once_it_is_used() -> None:
    from large import Shape

    class Square(Shape):  # type: ignore[misc]
        pass

    real = importlib.import_module("large")
    assert is_imported()
    assert real.Shape is not Shape
    assert Square.__mro__[1] is real.Shape
    assert isinstance(Square(), Shape)
    assert not isinstance(3, Shape)
    assert Shape.sides == 4


def test_a_name_that_is_not_listed_imports() -> None:
    import large

    assert not is_imported()
    assert large.VALUE == 7
    assert sys.modules["large"] is not large


def test_a_module_that_is_not_listed_imports_its_package_once() -> None:
    importlib.import_module("large")
    importlib.import_module("large.other")
    real = sys.modules["large"]
    assert sys.modules["large.other"] is real.other
    assert real.other.NAME == "other"
    assert real.other.__spec__.origin.endswith("other.py")
    assert importlib.import_module("large.parts").count() == 3
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("large.missing")


def test_the_parts_that_were_asked_for_come_with_the_package() -> None:
    import large.parts

    assert large.VALUE == 7
    assert sys.modules["large"].parts.count() == 3


def test_a_module_that_is_imported_already_stays() -> None:
    defer_imports({"json": ("loads",)})
    assert importlib.import_module("json").loads("1") == 1


def test_what_is_made_while_the_collector_is_paused_is_never_searched() -> None:
    import gc

    try:
        with collector_paused():
            assert not gc.isenabled()
            made = [[number] for number in range(1000)]
        assert gc.isenabled()
        assert gc.get_freeze_count() >= len(made)
        gc.collect()
        assert not any(found is made for found in gc.get_objects())
    finally:
        gc.unfreeze()
