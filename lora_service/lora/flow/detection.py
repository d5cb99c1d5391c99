"""The families that a LoRA, or a model, can be of: by its modules' names and shapes, and by the header where these
leave several.

Many names are shared: attention of diffusers' classes is ``transformer_blocks.0.attn.to_q`` in five families, and
FLUX.1's and FLUX.2's original blocks have the same names. Hidden size and number of blocks then tell which it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from lora_service.lora.flow.families import FAMILIES
from lora_service.lora.flow.names import Module, TransformerFamily, Version
from lora_service.lora.weights import BIAS, LoraWeights

Shape = tuple[int, ...]

COMPONENT = "transformer"
"""The component's name in diffusers' pipelines."""

_READS_HIDDEN_STATES = re.compile(
    r"(to_[qkv]|add_[qkv]_proj|to_qkv_mlp_proj|linear_in|net\.0\.proj|proj_mlp|feed_forward\.w[13]|ff\.(gate|up))$"
)
"""Paths of modules whose number of columns is the hidden size."""
_LEAST_KNOWN_SHARE = 0.5
"""With fewer of its names known, a file is of another transformer that shares a few."""
_HEADER_KEYS = ("ss_base_model_version", "modelspec.architecture")


@dataclass(frozen=True)
class Candidate:
    """A family that modules can be of.

    Attributes:
        known: how many of the modules the family has.
        unknown: the first name that it does not have; None if it has all.
        sized: its versions of the hidden size that the shapes show.
        versions: those of them that have as many blocks.
        exact: one of these has exactly as many.
    """

    family: TransformerFamily
    known: int
    unknown: str | None
    sized: tuple[Version, ...]
    versions: tuple[Version, ...]
    exact: bool

    @property
    def title(self) -> str:
        """The version's name where the shapes show it, else the family's."""
        return self.versions[0].title if len(self.versions) == 1 else self.family.title


def candidates(shapes: Mapping[str, Shape], metadata: Mapping[str, str] | None = None) -> tuple[Candidate, ...]:
    """Return the families that modules can be of, the likeliest first; () if they are of none.

    Args:
        shapes: a module's name in any spelling -> the shape of its weight.
        metadata: the header's strings.
    """
    found = [_candidate(family, shapes) for family in FAMILIES]
    most = max(candidate.known for candidate in found)
    if most == 0 or most < _LEAST_KNOWN_SHARE * len(shapes):
        return ()
    tied = [candidate for candidate in found if candidate.known == most]
    tied = [candidate for candidate in tied if candidate.versions or not candidate.sized]
    tied = [candidate for candidate in tied if _is_in_header(candidate.family, metadata or {})] or tied
    tied = [candidate for candidate in tied if candidate.sized] or tied
    # Nearly every training changes the last block too; but one of a few blocks may have as many as another family's.
    return tuple(sorted(tied, key=lambda candidate: not candidate.exact))


def lora_candidates(weights: LoraWeights) -> tuple[Candidate, ...]:
    """Return the families that a LoRA's transformer can be of, the likeliest first."""
    changes = weights.layers.get(COMPONENT)
    if not changes:
        return ()
    return candidates({path: change.shape for path, change in changes.items()}, weights.metadata)


def family_of_title(title: str) -> TransformerFamily | None:
    """Return the family that a :attr:`Candidate.title` is of."""
    return next((f for f in FAMILIES if title in (f.title, *(version.title for version in f.versions))), None)


def _candidate(family: TransformerFamily, shapes: Mapping[str, Shape]) -> Candidate:
    modules = {name: family.find(name.removesuffix(BIAS)) for name in shapes}
    known = {name: module for name, module in modules.items() if module and _has_aspect(module, shapes[name])}
    unknown = next((name for name in shapes if name not in known), None)
    counts: dict[str, int] = {}
    widths: set[int] = set()
    for name, module in known.items():
        block = module.entry.paths[0].partition(".{}.")[0]
        if module.number is not None:
            counts[block] = max(counts.get(block, 0), module.number + 1)
        if len(shapes[name]) > 1 and _READS_HIDDEN_STATES.search(module.paths[0]):
            widths |= {shapes[name][1]} if block in family.versions[0].blocks else set()
    sized = tuple(version for version in family.versions if version.width in widths)
    deep = tuple(v for v in sized if all(counts.get(block, 0) <= number for block, number in v.blocks.items()))
    exact = tuple(v for v in deep if any(counts.get(block) == number for block, number in v.blocks.items()))
    return Candidate(family, len(known), unknown, sized, exact or deep, bool(exact))


def _has_aspect(module: Module, shape: Shape) -> bool:
    """Return False if an original module has other proportions in this family."""
    aspect = module.entry.aspect
    if aspect is None or module.part is not None or len(shape) < 2:
        return True
    return abs(shape[0] - aspect * shape[1]) < 0.5


def _is_in_header(family: TransformerFamily, metadata: Mapping[str, str]) -> bool:
    values = [_hyphenated(metadata.get(key, "")) for key in _HEADER_KEYS]
    return any(value.startswith(_hyphenated(name)) for value in values for name in family.header_names)


def _hyphenated(text: str) -> str:
    return re.sub(r"[._ ]", "-", text.lower())
