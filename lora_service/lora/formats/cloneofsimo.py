"""cloneofsimo's lora_pti: ``unet:0:up``, ``unet:0:down``, ``text_encoder:0:up``, and a tensor per learned token.

Modules have numbers instead of names: the position among the linear layers (in the extended form also the
convolutions) inside the classes that the header lists, in the order in which the model registers them. That order
changed with diffusers 0.15 within each transformer block (attn1, ff, attn2 before; attn1, attn2, ff since), and nothing
in a file says which it has. It is recognised by the GEGLU projection, which alone is eight times as wide as its input.
https://github.com/cloneofsimo/lora, lora_diffusion/lora.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from lora_service.errors import LoraFileError
from lora_service.lora.formats.stored_tokens import Embeddings, add_rows, validated
from lora_service.lora.layer_builder import LayerTensors, TensorsByModule
from lora_service.lora.safetensors_file import TensorFile
from lora_service.lora.safetensors_header import shortened
from lora_service.lora.weights import LoraLayer, LoraWeights, WeightChange

_KEY = re.compile(r"(?P<component>unet|text_encoder):(?P<number>\d{1,5}):(?P<factor>up|down)")
_TOKEN_MARK = "<embed>"
_MODULES_KEY = "lora_service.modules"
"""Our own header string: JSON, component -> module paths in the file's order, for bases of another build than 1.5's."""
_FORMAT_STRING = re.compile(r"(unet|text_encoder)(:\d+:rank)?")

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_ATTN1, _ATTN2 = (tuple(f"{attention}.{layer}" for layer in _ATTENTION) for attention in ("attn1", "attn2"))
_GEGLU = "ff.net.0.proj"
OLD_ORDER = (*_ATTN1, _GEGLU, *_ATTN2)
NEW_ORDER = (*_ATTN1, *_ATTN2, _GEGLU)
_RESNET_ORDER = ("conv1", "time_emb_proj", "conv2", "conv_shortcut")
_TEXT_ORDER = ("k_proj", "v_proj", "q_proj", "out_proj")
_PLAIN_CLASSES = ("CrossAttention", "Attention", "GEGLU")
_EXTENDED_CLASSES = (*_PLAIN_CLASSES, "ResnetBlock2D")
_UNET_PATH = re.compile(
    r"(?:(?P<side>down|up)_blocks\.(?P<level>\d)|mid_block)\."
    r"(?P<block>attentions|resnets)\.(?P<index>\d)\.(?:transformer_blocks\.(?P<transformer>\d+)\.)?(?P<layer>.+)"
)
_TEXT_PATH = re.compile(r"encoder\.layers\.(?P<index>\d+)\.self_attn\.(?P<layer>\w+)")
_STANDARD_CROSS_ATTENTION_DIMS = (768, 1024)
_CONVERT_TO_KOHYA = "convert it to the kohya format instead"

NumberedTensors = Mapping[int, LayerTensors]
"""A module's number -> its tensors by suffix."""


def detects(keys: Collection[str], metadata: Mapping[str, str]) -> bool:
    """Return True if any key is a component, a number, and up or down."""
    return any(map(_KEY.fullmatch, keys))


def read(file: TensorFile) -> LoraWeights:
    """Return weights by the module paths that the numbers mean; alpha = rank, as the format has no alpha.

    Raises:
        LoraFileError: a key is none of this format (``unknown_key``), numbers are missing or more than the modules
            listed (``bad_numbering``), mean no known modules (``unknown_order``), or what they mean is listed wrongly
            (``bad_metadata``).
    """
    numbered: dict[str, dict[int, LayerTensors]] = {}
    embeddings: Embeddings = {}
    for key, tensor in file.tensors.items():
        if match := _KEY.fullmatch(key):
            by_number = numbered.setdefault(match["component"], {})
            by_number.setdefault(int(match["number"]), {})[f"lora_{match['factor']}.weight"] = tensor
        elif file.metadata.get(key) == _TOKEN_MARK:
            add_rows(embeddings, key, "text_encoder", tensor)
        else:
            raise LoraFileError(
                f"The key {shortened(key)!r} is neither a numbered module nor a learned token.", code="unknown_key"
            )
    modules = TensorsByModule()
    listed = _listed_modules(file.metadata)
    for component, by_number in numbered.items():
        for number, path in enumerate(_module_order(component, by_number, listed.get(component))):
            for suffix, tensor in by_number[number].items():
                modules.add(component, path, suffix, tensor)
    metadata = {key: text for key, text in file.metadata.items() if not _is_format_string(key, text)}
    return LoraWeights(modules.layers(), validated(embeddings), metadata, "cloneofsimo")


def _is_format_string(key: str, text: str) -> bool:
    return text == _TOKEN_MARK or key == _MODULES_KEY or _FORMAT_STRING.fullmatch(key) is not None


def _listed_modules(metadata: Mapping[str, str]) -> dict[str, list[str]]:
    try:
        listed = json.loads(metadata.get(_MODULES_KEY, "{}"))
        return {str(component): [str(path) for path in paths] for component, paths in listed.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise LoraFileError(
            f"The header string {_MODULES_KEY!r} does not list modules; write the file again.", code="bad_metadata"
        ) from error


def _module_order(component: str, by_number: NumberedTensors, listed: list[str] | None) -> Sequence[str]:
    """Return the module path of each number."""
    count = len(by_number)
    if sorted(by_number) != list(range(count)):
        raise LoraFileError(
            f"The modules of the {component} are not numbered 0 to {count - 1}; some are missing.",
            code="bad_numbering",
        )
    if listed is not None:
        if len(set(listed)) != count:
            raise LoraFileError(
                f"{len(set(listed))} modules are listed for {count} numbers of the {component}.", code="bad_numbering"
            )
        return listed
    if component == "text_encoder":
        return _text_encoder_order(count)
    for extended in (False, True):
        dialects = [list(standard_order(block_order, extended)) for block_order in (OLD_ORDER, NEW_ORDER)]
        if len(dialects[0]) == count:
            return _dialect(by_number, dialects)
    raise LoraFileError(
        f"It holds {count} numbered modules of the UNet; that of Stable Diffusion 1.x and 2.x has 144, or 224 with "
        "convolutions, and which modules of another base they mean is not in the file.",
        code="unknown_order",
    )


def _dialect(by_number: NumberedTensors, dialects: Sequence[Sequence[str]]) -> Sequence[str]:
    """Return the order in which exactly the GEGLU projections are eight times as wide as their inputs."""
    wide = {number for number, tensors in by_number.items() if _is_geglu(tensors)}
    for order in dialects:
        if wide == {number for number, path in enumerate(order) if path.endswith(_GEGLU)}:
            return order
    raise LoraFileError(
        "The shapes of its numbered modules are in neither of the two orders that this format is written in.",
        code="unknown_order",
    )


def _is_geglu(tensors: LayerTensors) -> bool:
    up, down = tensors.get("lora_up.weight"), tensors.get("lora_down.weight")
    return up is not None and down is not None and up.dim() == down.dim() == 2 and up.shape[0] == 8 * down.shape[1]


def standard_order(block_order: Sequence[str], extended: bool) -> Iterable[str]:
    """Yield the UNet's module paths of Stable Diffusion 1.x and 2.x in the order of their numbers.

    Args:
        block_order: within a transformer block, ``OLD_ORDER`` or ``NEW_ORDER``.
        extended: with the layers of residual blocks.
    """
    blocks = [(f"down_blocks.{level}", 2 if level < 3 else 0, 2) for level in range(4)]
    blocks += [(f"up_blocks.{level}", 3 if level > 0 else 0, 3) for level in range(4)]
    blocks += [("mid_block", 1, 2)]
    for block, attentions, resnets in blocks:
        for index in range(attentions):
            yield from (f"{block}.attentions.{index}.transformer_blocks.0.{layer}" for layer in block_order)
        for index in range(resnets if extended else 0):
            # A shortcut is there where the number of channels changes.
            has_shortcut = block.startswith("up") or (block in ("down_blocks.1", "down_blocks.2") and index == 0)
            yield from (f"{block}.resnets.{index}.{layer}" for layer in _RESNET_ORDER[: 4 if has_shortcut else 3])


def _text_encoder_order(count: int) -> list[str]:
    return [f"encoder.layers.{number // 4}.self_attn.{_TEXT_ORDER[number % 4]}" for number in range(count)]


def write(weights: LoraWeights) -> TensorFile:
    """Return tensors in the old dialect, which the original's own tools read.

    Raises:
        LoraFileError: a module has no number, or a number would have no module, which shifts the others
            (``unsupported_by_format``).
    """
    tensors: dict[str, Tensor] = {}
    strings: dict[str, str] = {}
    listed: dict[str, list[str]] = {}
    for component, layers in weights.layers.items():
        if component not in ("unet", "text_encoder"):
            kind = "transformer" if component == "transformer" else "second text encoder"
            raise _unsupported(f"The cloneofsimo format has no {kind}")
        paths = sorted(layers, key=_unet_position if component == "unet" else _text_encoder_position)
        if not _is_standard(component, paths, layers):
            listed[component] = paths
        strings[component] = json.dumps(_target_classes(component, paths))
        for number, path in enumerate(paths):
            layer = _plain_lora(component, path, layers[path])
            tensors[f"{component}:{number}:down"], tensors[f"{component}:{number}:up"] = layer.scaled_pair()
            strings[f"{component}:{number}:rank"] = str(layer.rank)
    for name, rows in weights.embeddings.items():
        if set(rows) != {"text_encoder"}:
            raise _unsupported("The cloneofsimo format has no second text encoder")
        tensors[name], strings[name] = rows["text_encoder"], _TOKEN_MARK
    if listed:
        strings[_MODULES_KEY] = json.dumps(listed)
    return TensorFile(tensors, strings)


def _target_classes(component: str, paths: Sequence[str]) -> Sequence[str]:
    if component == "text_encoder":
        return ("CLIPAttention",)
    return _EXTENDED_CLASSES if any(".resnets." in path for path in paths) else _PLAIN_CLASSES


def _plain_lora(component: str, path: str, layer: WeightChange) -> LoraLayer:
    if not isinstance(layer, LoraLayer):
        raise _unsupported(f"The module {component}.{path} is {layer.kind}, which the cloneofsimo format cannot hold")
    return layer


def _is_standard(component: str, paths: Sequence[str], layers: Mapping[str, WeightChange]) -> bool:
    """Return True if the numbers alone identify the modules.

    Raises:
        LoraFileError: the base is Stable Diffusion's, but some of the modules that must be numbered are missing.
    """
    if component == "text_encoder":
        return paths == _text_encoder_order(len(paths))
    if any(paths == list(standard_order(OLD_ORDER, extended)) for extended in (False, True)):
        return True
    widths = {layer.shape[1] for path, layer in layers.items() if path.endswith("attn2.to_k")}
    if widths.isdisjoint(_STANDARD_CROSS_ATTENTION_DIMS):
        return False
    raise _unsupported(
        f"The LoRA changes {len(paths)} modules of the UNet, but the cloneofsimo format numbers all 144 attention "
        "and GEGLU projections (224 with convolutions) and cannot leave one out"
    )


def _unet_position(path: str) -> tuple[Any, ...]:
    match = _UNET_PATH.fullmatch(path)
    order = OLD_ORDER if match and match["transformer"] else _RESNET_ORDER
    if match is None or match["layer"] not in order:
        raise _unnumbered(f"unet.{path}")
    side = ("down", "up", None).index(match["side"])
    block = (side, int(match["level"] or 0), match["block"], int(match["index"]), int(match["transformer"] or 0))
    return (*block, order.index(match["layer"]))


def _text_encoder_position(path: str) -> tuple[Any, ...]:
    match = _TEXT_PATH.fullmatch(path)
    if match is None or match["layer"] not in _TEXT_ORDER:
        raise _unnumbered(f"text_encoder.{path}")
    return int(match["index"]), _TEXT_ORDER.index(match["layer"])


def _unnumbered(module: str) -> LoraFileError:
    return _unsupported(
        f"The module {module} has no number in the cloneofsimo format, which holds the attention and GEGLU projections "
        "and residual blocks of the UNet and the attention of the text encoder"
    )


def _unsupported(problem: str) -> LoraFileError:
    return LoraFileError(f"{problem}; {_CONVERT_TO_KOHYA}.", code="unsupported_by_format")
