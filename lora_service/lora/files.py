"""LoRA files: read in any known format, written in a chosen one.

A new format is one module in ``formats/`` and one line in ``FORMATS``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from lora_service.errors import InputError, LoraFileError
from lora_service.lora.archive import EMBEDDINGS_NAME, is_archive, is_torch_file, unpack_lora
from lora_service.lora.formats import adapter_config, cloneofsimo, comfyui, diffusers, embedding, kohya
from lora_service.lora.formats.named_modules import BUNDLE_PREFIX
from lora_service.lora.formats.other_files import kind_of
from lora_service.lora.formats.stored_tokens import tokens_from_training
from lora_service.lora.header_facts import TOKENS_KEY
from lora_service.lora.pickled_embedding import read_torch_embedding
from lora_service.lora.safetensors_file import KOHYA_HASHES, TensorFile, read_tensor_file, serialize
from lora_service.lora.safetensors_header import read_header, shortened
from lora_service.lora.weights import LoraWeights
from lora_service.temporary_folders import temporary_folder
from lora_service.whole_files import whole_file


@dataclass(frozen=True)
class LoraFormat:
    """A file format of LoRAs.

    Attributes:
        detects: returns True if a file with these keys and header strings is of this format, before its tensors are
            read; called in the registry's order.
        read: file -> weights. Raises LoraFileError, and ignores no key in silence.
        write: weights -> tensors and the format's own header strings. Raises LoraFileError (``unsupported_by_format``)
            for what the format cannot hold.
    """

    name: str
    detects: Callable[[Collection[str], Mapping[str, str]], bool]
    read: Callable[[TensorFile], LoraWeights]
    write: Callable[[LoraWeights], TensorFile]


FORMATS = (
    LoraFormat("kohya", kohya.detects, kohya.read, kohya.write),
    LoraFormat("comfyui", comfyui.detects, comfyui.read, kohya.write),  # kohya's where ComfyUI has no own
    LoraFormat("diffusers", diffusers.detects, diffusers.read, diffusers.write),
    LoraFormat("cloneofsimo", cloneofsimo.detects, cloneofsimo.read, cloneofsimo.write),
    LoraFormat("embedding", embedding.detects, embedding.read, embedding.write),
)
FORMAT_NAMES = tuple(known.name for known in FORMATS)

# Header strings that belong to the format they were read with; beside another's keys they are wrong, or refused.
_FORMAT_STRINGS = (adapter_config.HEADER_KEY, TOKENS_KEY, *KOHYA_HASHES)


def read_lora(path: Path, name: str = "", *, torch_embedding: bool = False) -> LoraWeights:
    """Read a LoRA file, or the one in a zip or tar; its format is recognised by keys and shapes.

    Args:
        path: the file.
        name: its name as people know it, which names an embedding too; '': that of ``path``.
        torch_embedding: read a textual inversion in a file of PyTorch's own too.

    Raises:
        LoraFileError: the file is no LoRA, is damaged, or holds something that is not read; the message begins with
            the file's name.
    """
    name = name or path.name
    if torch_embedding and is_torch_file(path):
        return replace(read_torch_embedding(path, name), name=Path(name).stem)
    if is_archive(path):
        return _read_archive(path, name)
    header = read_header(path, name)  # its errors name the file
    try:
        find_format(header.tensors, header.metadata)  # what is no LoRA may be gigabytes
        file = read_tensor_file(path, header, Path(name).stem)
        weights = parse_lora(replace(file, adapter_config=adapter_config.read_beside(path)))
        return replace(weights, name=Path(name).stem)
    except LoraFileError as error:
        raise LoraFileError(f"{name}: {error}", code=error.code) from error


def _read_archive(path: Path, name: str) -> LoraWeights:
    """Read the LoRA of an archive, with the learned rows beside it."""
    with temporary_folder("lora-archive-") as folder:
        try:
            unpacked = unpack_lora(path, folder)
            weights = read_lora(unpacked.path, unpacked.name)
            if unpacked.embeddings is None:
                return weights
            header = read_header(unpacked.embeddings, EMBEDDINGS_NAME)
            rows = read_tensor_file(unpacked.embeddings, header).tensors
            return replace(weights, embeddings={**weights.embeddings, **tokens_from_training(rows, unpacked.word)})
        except LoraFileError as error:
            raise LoraFileError(f"{name}: {error}", code=error.code) from error


def parse_lora(file: TensorFile) -> LoraWeights:
    """Return the weights that named tensors and header strings describe.

    Raises:
        LoraFileError: as of :func:`find_format`, a value is ``not_finite``, or the format meets something that is not
            read.
    """
    lora_format = find_format(file.tensors, file.metadata)
    _check_finite(file.tensors)
    return lora_format.read(file)


def find_format(keys: Collection[str], metadata: Mapping[str, str]) -> LoraFormat:
    """Return the format of a file with these keys and header strings.

    Raises:
        LoraFileError: it is a file of another kind (``checkpoint``, ``controlnet``, ``vae`` and the others of
            :data:`~lora_service.lora.formats.other_files.KINDS`), or no format matches (``unknown_format``).
    """
    for candidate in FORMATS:
        if candidate.detects(keys, metadata):
            return candidate
    shown = ", ".join(repr(shortened(key)) for key in islice(keys, 3))
    if kind := kind_of(keys):
        raise LoraFileError(f"It is {kind.description} and no LoRA (its keys: {shown}, …).", code=kind.code)
    raise LoraFileError(
        f"Its keys ({shown or 'none'}) are of no known LoRA format ({', '.join(FORMAT_NAMES)}).", code="unknown_format"
    )


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    for key, tensor in tensors.items():
        if key.startswith(BUNDLE_PREFIX):
            continue  # an embedding of its own, which is left out if it cannot be used
        # A sum is not finite if any item is not; the other way round it may overflow, hence the second look.
        if tensor.is_floating_point() and not tensor.sum().isfinite() and not tensor.isfinite().all():
            raise LoraFileError(
                f"The tensor {shortened(key)!r} holds NaN or infinite values; the training went wrong.",
                code="not_finite",
            )


def write_lora(path: Path, weights: LoraWeights, *, format: str = "kohya", dtype: torch.dtype = torch.float16) -> None:
    """Write a LoRA file, whole or not at all; the same weights give the same bytes.

    Args:
        format: one of ``FORMAT_NAMES``.
        dtype: of the tensors; float16, bfloat16 or float32. Learned tokens in the header are fp16 always.

    Raises:
        InputError: there is no such format.
        LoraFileError: the format cannot hold these weights (``unsupported_by_format``), or a value is not finite in
            ``dtype`` (``not_finite``).
    """
    write = next((known.write for known in FORMATS if known.name == format), None)
    if write is None:
        raise InputError("format", format, f"one of {', '.join(FORMAT_NAMES)}")
    file = write(weights)
    kept = {key: text for key, text in weights.metadata.items() if key not in _FORMAT_STRINGS}
    with whole_file(path) as part:
        part.write_bytes(serialize(file.tensors, {**kept, **file.metadata}, dtype))
