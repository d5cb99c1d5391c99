"""Mangled uploads, the same for the same seed, and the invariants of loading them.

``python tests/dataset/hostile.py COUNT [FIRST]`` tries COUNT of them, one seed after the other.
"""

from __future__ import annotations

import faulthandler
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from lora_service.dataset import load
from lora_service.dataset.load import load_dataset
from lora_service.dataset.options import DatasetOptions, UploadLimits
from lora_service.errors import PicturesError
from tests.dataset.corpus_archives import ARCHIVES
from tests.dataset.corpus_besides import BESIDES
from tests.dataset.corpus_hostile import HOSTILE
from tests.dataset.corpus_pictures import PICTURES
from tests.dataset.picture_makers import encoded, half_mask, picture, tarred, zipped

OPTIONS = DatasetOptions(
    resolution=32, task="object", limits=UploadLimits(max_zip_bytes=1 << 20, max_members=100, max_pixels=100_000)
)
_FORMS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "HEIF")
_TEXTS = {
    "a.txt": b"TOK on grass\nTOK at sea",
    "captions.csv": b'file_name,text\na.png,"one, two"\n',
    "metadata.jsonl": b'{"file_name": "a.png", "text": "one"}\n',
}
_LARGEST = 60_000
_NUMBERS = [bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\1\0\0\0", b"\0\0\1\0"]
_TIMEOUT = 60  # seconds after which an input counts as a hang


class Mangler:
    """Generates an upload from each seed."""

    def __init__(self) -> None:
        small = [picture(seed, (24, 16)) for seed in range(3)]
        self.files = [encoded(image, form) for form in _FORMS for image in small]
        self.files += [encoded(small[0].convert(mode), "TIFF") for mode in ("CMYK", "L", "1", "P", "LAB", "F")]
        corpus = (*ARCHIVES, *HOSTILE, *PICTURES, *BESIDES)
        self.uploads = self.files + [case.data for case in corpus if 0 < len(case.data) < _LARGEST]

    def upload(self, seed: int) -> bytes:
        """Return a mangled archive or image, or an intact archive of mangled files."""
        rng = random.Random(seed)
        if rng.random() < 0.6:
            return self.mangled(rng.choice(self.uploads), rng)
        members = {"a.png": rng.choice(self.files), "a_mask.png": encoded(half_mask((24, 16)))}
        members |= dict(rng.sample(sorted(_TEXTS.items()), rng.randint(0, 2)))
        name = rng.choice(sorted(members))
        members[name] = self.mangled(members[name], rng)
        return rng.choice((zipped, tarred))(members)

    def mangled(self, data: bytes, rng: random.Random) -> bytes:
        """Return ``data`` after one to six damages: bytes changed, cut, doubled, or taken from another upload."""
        out = bytearray(data)
        for _ in range(rng.randint(1, 6)):
            _damage(out, rng, self.uploads)
        return bytes(out)


def _damage(out: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
    at = rng.randrange(len(out) + 1)
    kind = rng.randrange(6)
    if kind == 0 and out:
        out[at % len(out)] ^= 1 << rng.randrange(8)
    elif kind == 1:
        out[at : at + rng.randint(1, 8)] = rng.randbytes(rng.randint(0, 8))
    elif kind == 2:
        out[at : at + 4] = rng.choice(_NUMBERS)
    elif kind == 3:
        del out[at : at + rng.randint(1, 64)]
    elif kind == 4:
        out[at:at] = out[at : at + rng.randint(1, 64)]
    else:
        other = rng.choice(others)
        start = rng.randrange(len(other))
        out[at : at + 32] = other[start : start + 32]


def read_bytes(data: bytes, folder: Path) -> str:
    """Load ``data`` as an upload in the otherwise empty ``folder``, and return "used" or "refused"."""
    upload, job = folder / "upload", folder / "job"
    upload.write_bytes(data)
    try:
        dataset = load_dataset(upload, OPTIONS, job)
    except PicturesError as error:
        outcome = "refused"
        assert str(error).endswith("."), error  # noqa: PT017 - a refusal is an outcome like another
    else:
        outcome = "used"
        assert dataset.images
        assert dataset.report.lines()
    assert {path.name for path in folder.iterdir()} == {"job", "upload"}
    assert not any(job.iterdir())
    return outcome


class _OneThread(Executor):
    """An executor in the calling thread: a pool for each of a million inputs costs more than reading them."""

    def __init__(self, _: int) -> None:
        super().__init__()

    def map(self, fn: Any, *iterables: Any, **_: Any) -> Any:
        return map(fn, *iterables)


def main(count: int, first: int) -> None:
    """Try ``count`` uploads and print the outcomes; after a crash, the input is in the temporary folder."""
    faulthandler.enable()
    load.ThreadPoolExecutor = _OneThread  # type: ignore[assignment, misc]
    mangler, outcomes, start = Mangler(), Counter[str](), time.monotonic()
    folder = Path(tempfile.mkdtemp())
    for seed in range(first, first + count):
        signal.alarm(_TIMEOUT)  # ends the process, even where a decoder hangs
        outcomes[read_bytes(mangler.upload(seed), folder)] += 1
        if (seed - first + 1) % 10_000 == 0 or seed == first + count - 1:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            print(f"{seed + 1}: {dict(outcomes)}, {time.monotonic() - start:.0f} s, {peak} MiB", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
