"""The names of a transformer's modules: those of the original model and those of diffusers' class.

Names are compared with their dots replaced by underscores, so that a path, kohya's flat name and a mixture of both are
the same name: ``double_blocks.0.img_attn.qkv``, ``double_blocks_0_img_attn_qkv``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from lora_service.lora.key_mapping import flatten


@dataclass(frozen=True)
class Blocks:
    """Repeated blocks: ``original.3.img_attn.proj`` is ``path.3.attn.to_out.0``.

    Attributes:
        original: the blocks' name in the original model.
        path: their name in diffusers'.
        modules: name of a module in the original block -> its names in diffusers' block. Several names, with spaces
            between them, share the rows of the original. Of several originals of one module the first is written.
        aliases: other names of the blocks, which are read.
    """

    original: str
    path: str
    modules: Mapping[str, str]
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Version:
    """A published size of a family.

    Attributes:
        width: the hidden size.
        blocks: diffusers' name of blocks -> how many there are.
    """

    title: str
    width: int
    blocks: Mapping[str, int]


@dataclass(frozen=True)
class Entry:
    """An original module and the modules of diffusers' class that have its rows.

    Attributes:
        original: its name, with ``{}`` for the number of its block.
        paths: those of diffusers' class, with ``{}`` too, in the order of the rows.
        shares: the rows of each, as parts of the whole.
        swapped: the original has shift before scale, diffusers' class scale before shift.
        aspect: rows per column, where that tells families apart; None: as it may be.
    """

    original: str
    paths: tuple[str, ...]
    shares: tuple[int, ...]
    swapped: bool
    aspect: float | None


@dataclass(frozen=True)
class Module:
    """The module that a name stands for: an original one, or, with ``part``, one of the modules that have its rows."""

    entry: Entry
    number: int | None
    part: int | None

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of the modules of diffusers' class."""
        paths = self.entry.paths if self.part is None else (self.entry.paths[self.part],)
        return tuple(path.format(self.number) for path in paths)

    @property
    def original(self) -> str:
        """The original module's name."""
        return self.entry.original.format(self.number)


@dataclass(frozen=True, eq=False)
class TransformerFamily:
    """The modules of a family's transformer.

    Attributes:
        name: its identifier.
        title: its name for people.
        blocks: its repeated blocks.
        outside: as :attr:`Blocks.modules`, of the modules that are in no block.
        versions: its published sizes.
        shares: end of an original name -> :attr:`Entry.shares`, where they are not equal.
        swapped: originals with shift before scale.
        aspects: end of an original name -> :attr:`Entry.aspect`.
        header_names: beginnings of ``ss_base_model_version`` and ``modelspec.architecture``; the first is written.
        writes_paths: ComfyUI reads the names of diffusers' class for it, and trainers write these.
        writes_alpha: loaders take kohya's factors with alpha; of the others some refuse every tensor but factors.
    """

    name: str
    title: str
    blocks: tuple[Blocks, ...]
    outside: Mapping[str, str]
    versions: tuple[Version, ...]
    shares: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    swapped: tuple[str, ...] = ()
    aspects: Mapping[str, float] = field(default_factory=dict)
    header_names: tuple[str, ...] = ()
    writes_paths: bool = False
    writes_alpha: bool = False

    def find(self, name: str) -> Module | None:
        """Return what a module's name in any spelling stands for; None if the family has no such module."""
        return _find(self, flatten(name))

    def find_path(self, path: str) -> Module | None:
        """Return the original module that a module of diffusers' class has rows of; None if it has none."""
        module = self.find(path)
        return module and Module(module.entry, module.number, 0 if module.part is None else module.part)

    @cached_property
    def _entries(self) -> Mapping[str, tuple[Entry, int | None]]:
        """Flat name with ``{}`` -> entry, and which of its paths it is; None for an original name."""
        entries: dict[str, tuple[Entry, int | None]] = {}
        for blocks in (*self.blocks, Blocks("", "", self.outside)):
            for original, paths in blocks.modules.items():
                entry = self._entry(_joined(blocks.original, original), blocks.path, original, paths.split())
                for alias in (blocks.original, blocks.path, *blocks.aliases):
                    entries.setdefault(flatten(_joined(alias, original)), (entry, None))
                for alias in (blocks.path, *blocks.aliases):
                    for part, path in enumerate(paths.split()):
                        key = flatten(_joined(alias, path))
                        if key not in entries or (entries[key][1] is None and len(entry.paths) == 1):
                            entries[key] = (entry, part)
        return entries

    def _entry(self, name: str, block: str, original: str, paths: list[str]) -> Entry:
        return Entry(
            original=name,
            paths=tuple(_joined(block, path) for path in paths),
            shares=self.shares.get(original, (1,) * len(paths)),
            swapped=original in self.swapped,
            aspect=self.aspects.get(original),
        )

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        names = {flatten(name) for blocks in self.blocks for name in (blocks.original, blocks.path, *blocks.aliases)}
        return re.compile(rf"(?P<block>{'|'.join(sorted(names, key=len, reverse=True))})_(?P<number>\d{{1,3}})_")


def _joined(block: str, module: str) -> str:
    return f"{block}.{{}}.{module}" if block else module


@lru_cache(
    maxsize=16384
)  # each module's name comes with two or three tensors, and is asked for again when it is written
def _find(family: TransformerFamily, flat: str) -> Module | None:
    number = None
    if match := family._pattern.match(flat):
        number = int(match["number"])
        flat = f"{match['block']}_{{}}_{flat[match.end() :]}"
    found = family._entries.get(flat)
    return None if found is None else Module(found[0], number, found[1])
