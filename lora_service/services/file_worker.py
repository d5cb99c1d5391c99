"""Works on strangers' files for the gateway, in a process of its own that runs this module.

It reads one JSON object from standard input, with ``work`` and what that takes, and writes one to standard
output: the answer, or the user's mistake as ``error``. Pictures and LoRA files are opened here and not in the gateway,
so that neither their memory nor torch is its own, and it can be ended at any moment.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_service.errors import LoraServiceError, blame_input
from lora_service.settings import Settings

if TYPE_CHECKING:
    from PIL import Image

Work = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def preview(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Load the pictures of a training, and write their crops and masks into ``folder``.

    ``inputs`` are those of the training, with links for files; ``base`` is the base model's name.

    Raises:
        LoraServiceError: a mistake that the user can mend.
    """
    from lora_service.services.training_service import TrainingUpload, fetch_pictures
    from lora_service.training.inputs.config import TrainConfig
    from lora_service.training.preview import preview_dataset

    settings = Settings.from_environment().model_copy(update={"base_model": request["base"]})
    folder, inputs = Path(request["folder"]), dict(request["inputs"])
    files = {
        name: _fetched(settings, folder / name, name, inputs.pop(name, "")) for name in ("instance_data", "class_data")
    }
    upload = TrainingUpload(files["instance_data"], inputs.pop("instance_data_urls", ""), files["class_data"])
    config = TrainConfig.of(inputs)
    upload.check(config)
    source = fetch_pictures(settings, upload, folder / "pictures")
    shown = preview_dataset(source, config, settings, folder, class_data=upload.class_file)
    report = shown.dataset.report.as_json()
    pictures = []
    for number, (image, used) in enumerate(zip(shown.dataset.images, report.pop("used"), strict=False)):
        names: dict[str, str | None] = {"image": _saved(image.image, folder / f"{number}.png"), "mask": None}
        if image.mask:
            names["mask"] = _saved(image.mask, folder / f"{number}-mask.png")
        pictures.append(used | {"mask_source": used["mask"], **names})
    return {"pictures": pictures, **report, "lines": shown.lines()}


def _saved(image: Image.Image, path: Path) -> str:
    image.save(path)
    return path.name


def _fetched(settings: Settings, folder: Path, name: str, link: str) -> Path | None:
    from lora_service.downloads.fetcher import Fetcher
    from lora_service.downloads.resolve import resolve

    if not link:
        return None
    with blame_input(name):
        return Fetcher(settings).download(resolve(link), folder, max_bytes=settings.max_zip_bytes)


def inspect(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the summary of the LoRA in ``path``, called ``name``, and the formats that it can be written in.

    Raises:
        LoraFileError: it is none.
    """
    from lora_service.lora.files import FORMATS, read_lora
    from lora_service.lora.summary import summarize

    weights = read_lora(Path(request["path"]), request["name"])
    formats = []
    for each in FORMATS:
        try:
            each.write(weights)
        except LoraServiceError:
            continue
        formats.append(each.name)
    return {"inspect": asdict(summarize(weights)), "formats": formats}


def convert(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Write the LoRA in ``path``, called ``name``, to ``output`` in another ``format`` and ``dtype``.

    Raises:
        LoraFileError: it is none, or the format cannot hold it.
    """
    import torch

    from lora_service.lora.files import read_lora, write_lora

    weights = read_lora(Path(request["path"]), request["name"])
    write_lora(Path(request["output"]), weights, format=request["format"], dtype=getattr(torch, request["dtype"]))
    return {"warnings": list(weights.warnings)}


WORKS: Mapping[str, Work] = {"preview": preview, "inspect": inspect, "convert": convert}


def main() -> None:
    """Do the work that standard input asks for."""
    request = json.load(sys.stdin)
    answer: Mapping[str, Any]
    try:
        answer = WORKS[request["work"]](request)
    except LoraServiceError as error:
        answer = {"error": {"message": str(error), "field": error.field, "code": error.code}}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
