"""Hundreds of mixed requests to one inference service: its memory, its pictures and its base have to stay as they are.

    python -m benchmarks.request_memory [REQUESTS]

The requests differ in sizes, samplers, schedules, number of pictures, LoRAs and scales by block and step. Of four, one
is refused: for a LoRA of another base, of thousands of tiny tensors or with a name of megabytes, for a damaged file, or
for a value; one is cancelled between two steps; and one repeats an earlier one, whose pictures have to be the same
byte for byte. No two refused files are equal, so that anything that is kept of them shows. Printed are the resident
memory after every 100 requests, and at the end whether the base is bit-identical.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import gc
import hashlib
import json
import os
import random
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from lora_service.errors import LoraServiceError
from lora_service.generation.schedulers import SCHEDULERS, SCHEDULES
from lora_service.lora.files import write_lora
from lora_service.lora.weights import LoraLayer, LoraWeights
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.services.inference_service import InferenceService
from lora_service.settings import MEBIBYTE, Settings

Inputs = dict[str, Any]
_LORAS = 12  # different ones that fit
_REPORT = 100  # requests
_REPEATED = 12  # different requests that are asked again and again
_TINY_TENSORS = 24_800


def resident() -> float:
    """Return the resident memory of this process in MiB, after what is free was handed back to the system."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MEBIBYTE


def random_lora(base: DiffusionBase, seed: int, rank: int = 4) -> LoraWeights:
    """Return a LoRA of every attention layer of the UNet, with a token of its own."""
    generator = torch.Generator().manual_seed(seed)

    def layer(weight: torch.Tensor) -> LoraLayer:
        out_channels, in_channels = weight.shape
        down = torch.randn(rank, in_channels, generator=generator) * 0.02
        return LoraLayer(down, torch.randn(out_channels, rank, generator=generator) * 0.02, float(rank))

    modules = {
        path: layer(module.weight)
        for path, module in base.unet.named_modules()
        if isinstance(module, torch.nn.Linear) and "attn" in path
    }
    width = base.text.encoders["text_encoder"].config.hidden_size
    row = torch.randn(width, generator=generator) * 0.1
    return LoraWeights({"unet": modules}, {f"<word{seed}>": {"text_encoder": row}})


Kind = Literal["drawn", "repeated", "refused", "cancelled"]


@dataclass(frozen=True)
class Request:
    """Inputs, the picture to start from with its mask, and what is to become of them.

    Attributes:
        passes: of the UNet, after which one that is to be cancelled is.
    """

    kind: Kind
    inputs: Inputs
    image: Path | None
    mask: Path | None
    passes: int


class Cancelled(BaseException):
    """A cancellation as Cog raises it: no ``Exception``."""


class Requests:
    """An endless series of requests.

    Args:
        folder: takes the LoRAs' files.
        base: the base that the good ones fit.
        seed: the same gives the same requests.
    """

    def __init__(self, folder: Path, base: DiffusionBase, seed: int = 0) -> None:
        self._folder, self._random = folder, random.Random(seed)
        self._loras = [folder / f"{number}.safetensors" for number in range(_LORAS)]
        for number, path in enumerate(self._loras):
            write_lora(path, random_lora(base, number))
        self._picture = folder / "start.png"
        Image.new("RGB", (80, 60), "red").save(self._picture)
        self._mask = folder / "mask.png"
        Image.linear_gradient("L").resize((80, 60)).save(self._mask)
        self._number = 0

    def __iter__(self) -> Iterator[Request]:
        repeated = [self._request("repeated") for _ in range(_REPEATED)]
        while True:
            self._number += 1
            match self._number % 4:
                case 0:
                    yield self._request("refused")
                case 1:
                    yield self._random.choice(repeated)
                case 2:
                    yield self._request("cancelled")
                case _:
                    yield self._request("drawn")

    def _request(self, kind: Kind) -> Request:
        inputs, image = self._inputs(), self._random.choice([self._picture, None])
        mask = self._random.choice([self._mask, None]) if image else None
        if kind == "refused":
            links = inputs["lora_urls"]
            inputs |= self._mistake(links.split("|") if links else [])
        return Request(kind, inputs, image, mask, self._random.randint(1, 4))

    def _inputs(self) -> Inputs:
        rng = self._random
        loras = [str(path) for path in rng.sample(self._loras, rng.randint(0, 3))]
        scheduler = rng.choice(list(SCHEDULERS))
        can_space = SCHEDULERS[scheduler].schedules and SCHEDULERS[scheduler].schedule == "default"
        return {
            "prompt": " ".join(["a red star", *(f"<{number + 1}>" for number in range(len(loras)))]),
            "negative_prompt": rng.choice(["", "grey"]),
            "width": rng.choice([16, 32, 48]),
            "height": rng.choice([16, 32]),
            "num_outputs": rng.randint(1, 3),
            "num_inference_steps": rng.randint(2, 4),
            "scheduler": scheduler,
            "schedule": rng.choice(list(SCHEDULES)) if can_space else "default",
            "guidance_rescale": rng.choice([0.0, 0.7]),
            "cache_interval": rng.choice([1, 1, 2]),
            "lora_scales": rng.choice(["0.8", "1/0.5", "0.3,unet.mid:1", "1,steps:0-0.5", "0.5,steps:0.3-1"]),
            "lora_urls": "|".join(loras),
            "seed": rng.randrange(2**32),
        }

    def _mistake(self, loras: list[str]) -> Inputs:
        """Return inputs that make a request one that is refused."""
        makers: list[Callable[[], Inputs]] = [
            lambda: {"scheduler": "none"},
            lambda: {"prompt": "<9>", "lora_urls": "|".join(loras or [str(self._loras[0])])},
            lambda: {"lora_urls": "|".join([*loras, self._data_uri(random_bytes(self._random, 20_000))])},
            lambda: {"lora_urls": "|".join([*loras, str(self._other_base())])},
            lambda: {"lora_urls": "|".join([*loras, str(self._written(tiny_tensors(self._random)))])},
            lambda: {"lora_urls": "|".join([*loras, str(self._written(long_name(self._random)))])},
        ]
        return self._random.choice(makers)()

    def _data_uri(self, data: bytes) -> str:
        return f"data:application/octet-stream;base64,{base64.b64encode(data).decode()}"

    def _other_base(self) -> Path:
        path = self._folder / "other.safetensors"
        layer = LoraLayer(torch.randn(4, 7), torch.randn(9, 4), 4.0)
        write_lora(path, LoraWeights({"unet": {f"conv_in_{self._random.randrange(10**6)}": layer, "conv_in": layer}}))
        return path

    def _written(self, data: bytes) -> Path:
        path = self._folder / "refused.safetensors"
        path.write_bytes(data)
        return path


def random_bytes(rng: random.Random, size: int) -> bytes:
    return rng.randbytes(size)


def file_of(names: list[str], rng: random.Random) -> bytes:
    """Return a safetensors file of tensors of one value."""
    header = {
        name: {"dtype": "F32", "shape": [1, 1], "data_offsets": [4 * number, 4 * number + 4]}
        for number, name in enumerate(names)
    }
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + struct.pack(f"<{len(names)}f", *(rng.random() for _ in names))


def tiny_tensors(rng: random.Random) -> bytes:
    """Return a LoRA of thousands of modules of rank 1, that no base has, in a file of 3 MB."""
    mark = rng.randrange(10**9)
    modules = [f"lora_unet_down_blocks_{mark}_{number}" for number in range(_TINY_TENSORS // 2)]
    return file_of([f"{module}.lora_{factor}.weight" for module in modules for factor in ("down", "up")], rng)


def long_name(rng: random.Random) -> bytes:
    """Return a LoRA with a tensor whose name has 7 MB."""
    return file_of([f"lora_unet_{rng.randrange(10**9)}{'x' * 7_000_000}.lora_down.weight"], rng)


@dataclass
class Campaign:
    """A service under requests, and what became of them.

    Args:
        service: with the embedded base.
        base: that of the service, which nothing else changes.

    Attributes:
        outcomes: codes of errors, ``drawn``, ``repeated``, ``cancelled`` or ``wrong`` -> their number.
        wrong: the requests of which came what should not have, each with that.
    """

    service: InferenceService
    base: DiffusionBase
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    _pictures: dict[str, list[bytes]] = field(default_factory=dict)

    def ask(self, request: Request) -> None:
        """Ask the service, and count what came of it."""
        came = "pictures"
        try:
            with self._cancelled_after(request.passes if request.kind == "cancelled" else 0):
                paths = self.service.run(request.inputs, image=request.image, mask=request.mask, log=lambda line: None)
            outcome = "wrong" if request.kind == "refused" else "drawn"
            if request.kind == "repeated":
                pictures = [Image.open(path).tobytes() for path in paths]
                known = self._pictures.setdefault(
                    json.dumps([request.inputs, str(request.image), str(request.mask)]), pictures
                )
                outcome = "repeated" if known == pictures else "wrong"
        except LoraServiceError as error:
            outcome, came = (error.code if request.kind == "refused" else "wrong"), str(error)
        except Cancelled:
            outcome = "cancelled"
        self.outcomes[outcome] += 1
        if outcome == "wrong":
            self.wrong.append(f"{came} of {request}")

    @contextlib.contextmanager
    def _cancelled_after(self, passes: int) -> Iterator[None]:
        left = iter(range(passes, -1, -1))

        def count(*_: object) -> None:
            if next(left) == 0:
                raise Cancelled

        handle = self.base.unet.conv_in.register_forward_pre_hook(count) if passes else None
        try:
            yield
        finally:
            if handle is not None:
                handle.remove()

    def digest(self) -> str:
        """Return a hash of all weights of the base, without any LoRA."""
        self.service.restore_base()
        total = hashlib.sha256()
        for model in (*self.base.components.values(), self.base.vae):
            for key, value in sorted(model.state_dict().items()):
                total.update(key.encode() + value.contiguous().numpy().tobytes())
        return total.hexdigest()


@contextlib.contextmanager
def campaign(folder: Path) -> Iterator[tuple[Campaign, Iterator[Request]]]:
    """Yield a service of the embedded base with its requests."""
    settings = Settings(base_model="embedded", lora_cache=folder / "cache", torch_threads=1)
    with InferenceService(settings, allow_local=True) as service:
        base = service.base
        yield Campaign(service, base), iter(Requests(folder, base))


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as name, campaign(Path(name)) as (run, requests):
        before = run.digest()
        for number in range(1, count + 1):
            run.ask(next(requests))
            if number in (10, 50) or number % _REPORT == 0:
                print(f"{number} requests: {resident():.0f} MiB ({dict(sorted(run.outcomes.items()))})", flush=True)
        print(f"The base is {'bit-identical' if run.digest() == before else 'CHANGED'}; wrong: {len(run.wrong)}")
        print(*run.wrong, sep="\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500)
