"""Train the judges, from nothing to the folder that benchmarks and tests read.

    python -m tools.judges.build

An interrupted build resumes where it was when it is started again; ``--work`` holds the checkpoints. It takes about
40 minutes on one idle CPU core. ``python -m tools.judges.validate`` then measures the judges.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import CLIPImageProcessorPil, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from lora_service.models.image_judge import EMBEDDED_JUDGE
from tools.embedded.pool import SIZE
from tools.judges import image, image_text, reader
from tools.judges.judging import IMAGE_TEXT, JUDGES
from tools.judges.reader import READER


def build(work: Path, out: Path, image_out: Path) -> None:
    """Train the judges that have no finished checkpoint in ``work``, and write them to ``out`` and ``image_out``."""
    reader.train(work).save(out / READER.name)
    clip, clip_tokenizer = image_text.train(work)
    export(clip, out / IMAGE_TEXT.name)
    clip_tokenizer.save_pretrained(out / IMAGE_TEXT.name)
    # The image encoder starts from the image-text model's vision model, which knows things and colours already.
    export(image.train(work, clip).model, image_out)


def export(model: PreTrainedModel, folder: Path) -> None:
    """Write a copy of ``model`` in fp16, and the configuration of its image processor."""
    weights = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=weights)
    side = {"height": SIZE, "width": SIZE}
    processor = CLIPImageProcessorPil(size=side, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    processor.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, default=Path("build/judges"), help="folder of the pictures and checkpoints"
    )
    parser.add_argument("--out", type=Path, default=JUDGES, help="folder that the judges are written to")
    parser.add_argument("--image-out", type=Path, default=EMBEDDED_JUDGE, help="folder of the image judge")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    disable_progress_bar()
    build(arguments.work, arguments.out, arguments.image_out)


if __name__ == "__main__":
    main()
