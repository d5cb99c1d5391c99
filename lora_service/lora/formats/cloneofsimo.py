"""cloneofsimo's lora_pti: ``unet:0:up``, ``unet:0:down``, ``text_encoder:0:up``, and a tensor per learned token.

Modules have numbers instead of names: the position among the linear layers (in the extended form also the
convolutions) inside the classes that the header lists, in the order in which the model registers them. That order
changed with diffusers 0.15 within each transformer block (attn1, ff, attn2 before; attn1, attn2, ff since), and nothing
in a file says which it has; the GEGLU projection, eight times as wide as its input, gives it away.
https://github.com/cloneofsimo/lora, lora_diffusion/lora.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from lora_service.errors import LoraFileError
from lora_service.lora.content import FileContent
from lora_service.lora.formats.diffusers import plain_pair
from lora_service.lora.formats.stored_tokens import Embeddings, add_rows, checked
from lora_service.lora.layer_builder import TensorsByModule
from lora_service.lora.safetensors_header import shortened
from lora_service.lora.weights import LoraLayer, LoraWeights, WeightChange

_KEY = re.compile(r"(unet|text_encoder):(\d{1,5}):(up|down)")
_TOKEN_MARK = "<embed>"
_MODULES_KEY = "lora_service.modules"
"""Our own header string: JSON, component -> module paths in the file's order, for bases of another build than 1.5's."""

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_ATTN1, _ATTN2 = (tuple(f"{name}.{part}" for part in _ATTENTION) for name in ("attn1", "attn2"))
_GEGLU = "ff.net.0.proj"
OLD_ORDER = (*_ATTN1, _GEGLU, *_ATTN2)
NEW_ORDER = (*_ATTN1, *_ATTN2, _GEGLU)
_RESNET_ORDER = ("conv1", "time_emb_proj", "conv2", "conv_shortcut")
_TEXT_ORDER = ("k_proj", "v_proj", "q_proj", "out_proj")
_PLAIN_CLASSES = ("CrossAttention", "Attention", "GEGLU")
_EXTENDED_CLASSES = (*_PLAIN_CLASSES, "ResnetBlock2D")
_UNET_PATH = re.compile(
    r"(?:(?P<group>down|up)_blocks\.(?P<level>\d)|mid_block)\."
    r"(?P<kind>attentions|resnets)\.(?P<index>\d)\.(?:transformer_blocks\.(?P<layer>\d+)\.)?(?P<part>.+)"
)
_TEXT_PATH = re.compile(r"encoder\.layers\.(?P<layer>\d+)\.self_attn\.(?P<part>\w+)")
_STANDARD_TEXT_WIDTHS = (768, 1024)


def detects(content: FileContent) -> bool:
    """Whether any key is a component, a number, and up or down."""
    return any(_KEY.fullmatch(key) for key in content.tensors)


def read(content: FileContent) -> LoraWeights:
    """Weights by the modules that the numbers mean; alpha = rank, as the layout has no alpha."""
    numbered: dict[str, dict[int, dict[str, Tensor]]] = {}
    embeddings: Embeddings = {}
    for key, tensor in content.tensors.items():
        if match := _KEY.fullmatch(key):
            pairs = numbered.setdefault(match[1], {})
            pairs.setdefault(int(match[2]), {})[f"lora_{match[3]}.weight"] = tensor
        elif content.metadata.get(key) == _TOKEN_MARK:
            add_rows(embeddings, key, "text_encoder", tensor)
        else:
            raise LoraFileError(f"The key {shortened(key)!r} is neither a numbered change nor a learned token.")
    modules = TensorsByModule()
    listed = _listed_modules(content.metadata)
    for component, pairs in numbered.items():
        paths = _order(component, pairs, listed.get(component))
        for number, path in enumerate(paths):
            for part, tensor in pairs[number].items():
                modules.add(component, path, part, tensor)
    return LoraWeights(modules.layers(), checked(embeddings), _without_own_strings(content.metadata), "cloneofsimo")


def _listed_modules(metadata: Mapping[str, str]) -> dict[str, list[str]]:
    try:
        listed = json.loads(metadata.get(_MODULES_KEY, "{}"))
        return {str(component): [str(path) for path in paths] for component, paths in listed.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise LoraFileError(
            f"The header string {_MODULES_KEY!r} does not list modules; write the file again."
        ) from error


def _order(component: str, pairs: Mapping[int, Mapping[str, Tensor]], listed: list[str] | None) -> Sequence[str]:
    """The module path of each number."""
    count = len(pairs)
    if sorted(pairs) != list(range(count)):
        raise LoraFileError(f"The changes of the {component} are not numbered 0 to {count - 1}; some are missing.")
    if listed is not None:
        if len(set(listed)) != count:
            raise LoraFileError(f"{len(set(listed))} modules are listed for {count} changes of the {component}.")
        return listed
    if component == "text_encoder":
        return [f"encoder.layers.{number // 4}.self_attn.{_TEXT_ORDER[number % 4]}" for number in range(count)]
    for extended in (False, True):
        orders = [list(standard_order(order, extended)) for order in (OLD_ORDER, NEW_ORDER)]
        if len(orders[0]) == count:
            return _dialect(pairs, orders)
    raise LoraFileError(
        f"It holds {count} numbered changes of the UNet; that of Stable Diffusion 1.x and 2.x has 144, or 224 with "
        "convolutions, and which modules of another base they mean is not in the file."
    )


def _dialect(pairs: Mapping[int, Mapping[str, Tensor]], orders: Sequence[Sequence[str]]) -> Sequence[str]:
    """The one of the orders in which exactly the GEGLU projections are eight times as wide as their inputs."""
    wide = {number for number, parts in pairs.items() if _is_geglu(parts)}
    for order in orders:
        if wide == {number for number, path in enumerate(order) if path.endswith(_GEGLU)}:
            return order
    raise LoraFileError(
        "The shapes of its numbered changes are in neither order of modules that is known for this layout."
    )


def _is_geglu(parts: Mapping[str, Tensor]) -> bool:
    up, down = parts.get("lora_up.weight"), parts.get("lora_down.weight")
    return up is not None and down is not None and up.dim() == down.dim() == 2 and up.shape[0] == 8 * down.shape[1]


def standard_order(block_order: Sequence[str], extended: bool) -> Iterable[str]:
    """Module paths of Stable Diffusion 1.x and 2.x in the order of their numbers."""
    blocks = [(f"down_blocks.{level}", 2 if level < 3 else 0, 2) for level in range(4)]
    blocks += [(f"up_blocks.{level}", 3 if level > 0 else 0, 3) for level in range(4)]
    blocks += [("mid_block", 1, 2)]
    for block, attentions, resnets in blocks:
        for index in range(attentions):
            yield from (f"{block}.attentions.{index}.transformer_blocks.0.{part}" for part in block_order)
        for index in range(resnets if extended else 0):
            # A shortcut is there where the number of channels changes.
            changes = block.startswith("up") or (block in ("down_blocks.1", "down_blocks.2") and index == 0)
            yield from (f"{block}.resnets.{index}.{part}" for part in _RESNET_ORDER[: 4 if changes else 3])


def write(weights: LoraWeights) -> FileContent:
    """The old dialect, which the original's own tools read.

    Raises:
        LoraFileError: a change cannot be numbered, or the base has modules without a change (numbers would shift).
    """
    tensors: dict[str, Tensor] = {}
    strings: dict[str, str] = {}
    listed: dict[str, list[str]] = {}
    for component, layers in weights.layers.items():
        if component == "text_encoder_2":
            raise LoraFileError("The cloneofsimo layout has no second text encoder; convert it to kohya instead.")
        paths = sorted(layers, key=_unet_position if component == "unet" else _text_position)
        if not _is_standard(component, paths, layers):
            listed[component] = paths
        extended = any(".resnets." in path for path in paths)
        classes = (_EXTENDED_CLASSES if extended else _PLAIN_CLASSES) if component == "unet" else ("CLIPAttention",)
        strings[component] = json.dumps(classes)
        for number, path in enumerate(paths):
            layer = _plain(component, path, layers[path])
            tensors[f"{component}:{number}:down"], tensors[f"{component}:{number}:up"] = plain_pair(layer)
            strings[f"{component}:{number}:rank"] = str(layer.rank)
    for name, rows in weights.embeddings.items():
        if set(rows) != {"text_encoder"}:
            raise LoraFileError("The cloneofsimo layout has no second text encoder; convert it to kohya instead.")
        tensors[name], strings[name] = rows["text_encoder"], _TOKEN_MARK
    if listed:
        strings[_MODULES_KEY] = json.dumps(listed)
    return FileContent(tensors, strings)


def _plain(component: str, path: str, layer: WeightChange) -> LoraLayer:
    if not isinstance(layer, LoraLayer):
        raise LoraFileError(f"The module {component}.{path} is {layer.kind}, which the cloneofsimo layout cannot hold.")
    return layer


def _is_standard(component: str, paths: Sequence[str], layers: Mapping[str, WeightChange]) -> bool:
    """Whether the numbers alone tell the modules.

    Raises:
        LoraFileError: the base is Stable Diffusion's, but some of the modules that must be numbered are missing.
    """
    if component == "text_encoder":
        complete = paths == [
            f"encoder.layers.{number // 4}.self_attn.{_TEXT_ORDER[number % 4]}" for number in range(len(paths))
        ]
        standard = complete
    else:
        complete = any(paths == list(standard_order(OLD_ORDER, extended)) for extended in (False, True))
        widths = {layer.shape[1] for path, layer in layers.items() if path.endswith("attn2.to_k")}
        standard = complete or not widths.isdisjoint(_STANDARD_TEXT_WIDTHS)
    if standard and not complete:
        raise LoraFileError(
            f"The LoRA changes {len(paths)} modules of the UNet, but the cloneofsimo layout numbers all 144 attention "
            "and GEGLU projections (224 with convolutions) and cannot leave one out; convert it to kohya instead."
        )
    return complete


def _unet_position(path: str) -> tuple[Any, ...]:
    match = _UNET_PATH.fullmatch(path)
    parts = OLD_ORDER if match and match["layer"] else _RESNET_ORDER
    if match is None or match["part"] not in parts:
        raise _unnumbered(f"unet.{path}")
    group = ("down", "up", None).index(match["group"])
    position = (group, int(match["level"] or 0), match["kind"], int(match["index"]), int(match["layer"] or 0))
    return (*position, parts.index(match["part"]))


def _text_position(path: str) -> tuple[Any, ...]:
    match = _TEXT_PATH.fullmatch(path)
    if match is None or match["part"] not in _TEXT_ORDER:
        raise _unnumbered(f"text_encoder.{path}")
    return int(match["layer"]), _TEXT_ORDER.index(match["part"])


def _unnumbered(name: str) -> LoraFileError:
    return LoraFileError(
        f"The module {name} has no number in the cloneofsimo layout, which holds the attention and GEGLU projections "
        "and residual blocks of the UNet and the attention of the text encoder; convert it to kohya instead."
    )


def _without_own_strings(metadata: Mapping[str, str]) -> dict[str, str]:
    """Header strings that say more than the layout itself."""
    own = re.compile(r"(unet|text_encoder)(:\d+:rank)?")
    return {
        key: text
        for key, text in metadata.items()
        if not own.fullmatch(key) and text != _TOKEN_MARK and key != _MODULES_KEY
    }
