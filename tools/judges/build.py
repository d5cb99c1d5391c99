"""Makes the judges, from nothing to the folder that benchmarks and tests read.

    python -m tools.judges.build

Stopped at any moment, it goes on where it was when started again; ``--work`` holds
what is in progress. About 40 minutes on one undisturbed CPU core. ``python -m tools.judges.validate``
then says how good they are.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import CLIPImageProcessorPil, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from tools.embedded.pool import SIZE
from tools.judges import image, image_text, reader
from tools.judges.folders import IMAGE, IMAGE_TEXT, JUDGES, READER


def build(work: Path, out: Path) -> None:
    """Train what is not trained yet and write the three judges to ``out``."""
    reader.train(work).save(out / READER.name)
    clip, words = image_text.train(work)
    export(clip, out / IMAGE_TEXT.name)
    words.save_pretrained(out / IMAGE_TEXT.name)
    # The image encoder starts with the eyes of the image-text model, which know things and colours by now.
    export(image.train(work, clip).model, out / IMAGE.name)


def export(model: PreTrainedModel, folder: Path) -> None:
    """Write a copy of ``model`` in fp16, and how pictures are prepared for it."""
    weights = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=weights)
    side = {"height": SIZE, "width": SIZE}
    processor = CLIPImageProcessorPil(size=side, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    processor.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/judges"), help="what is in progress")
    parser.add_argument("--out", type=Path, default=JUDGES, help="where the judges are written")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    disable_progress_bar()
    build(arguments.work, arguments.out)


if __name__ == "__main__":
    main()
