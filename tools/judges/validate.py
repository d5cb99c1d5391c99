"""How far the judges can be trusted, on pictures of seeds and subjects that they were not trained on.

python -m tools.judges.validate [--count 300]
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from PIL import Image
from transformers.utils.logging import disable_progress_bar

from tools.embedded.pool import SIZE, to_tensor
from tools.judges.augment import melt
from tools.judges.folders import IMAGE, IMAGE_TEXT
from tools.judges.judging import ImageJudge, TextJudge
from tools.judges.questions import QUESTIONS, altered, answers
from tools.judges.reader import Reader
from tools.synthetic.canvas import reduce
from tools.synthetic.captions import held_out_prompts
from tools.synthetic.creatures import HELD_OUT_SUBJECTS
from tools.synthetic.description import Description
from tools.synthetic.subjects import KINDS, pictures

SEED = 2_000_000
"""Of the pictures that judges are validated on."""


@dataclass(frozen=True)
class Trust:
    """Shares of pictures, by question: called right where it is so, and where it is not."""

    real: dict[str, float]
    mismatched: dict[str, float]


def renders(descriptions: Sequence[Description], seed: int = SEED) -> list[Image.Image]:
    """Each of ``descriptions``, drawn as the synthetic dataset draws it."""
    rng = random.Random(f"render {seed}")
    return [reduce(description.draw(rng), SIZE) for description in descriptions]


def shares_right(read: Sequence[dict[str, str]], descriptions: Sequence[Description]) -> dict[str, float]:
    """Share of pictures in which ``read`` and the description agree, by question, where it is answered."""
    agreed: dict[str, list[bool]] = {name: [] for name in QUESTIONS}
    for seen, description in zip(read, descriptions, strict=True):
        for name, told in answers(description).items():
            agreed[name].append(seen[name] == told)
    return {name: sum(found) / max(1, len(found)) for name, found in agreed.items()}


def trust_of_reader(reader: Reader, count: int, pictures: Sequence[Image.Image] = ()) -> Trust:
    """How often ``reader`` calls an answer right in ``count`` renders, with the true answers and with false ones.

    ``pictures`` are other pictures of the same descriptions, such as the renders after a VAE.
    """
    asked = held_out_prompts(count, SEED)
    read, rng = reader.read(pictures or renders(asked)), random.Random(SEED)
    mismatched = {}
    for name in QUESTIONS:
        told = [(seen, altered(d, name, rng)) for seen, d in zip(read, asked, strict=True) if name in answers(d)]
        mismatched[name] = shares_right([seen for seen, _ in told], [d for _, d in told])[name]
    return Trust(shares_right(read, asked), mismatched)


def trust_of_text_judge(judge: TextJudge, count: int) -> dict[str, float]:
    """Share of renders that suit their caption better than one with another answer, by question."""
    asked, rng, prefers = held_out_prompts(count, SEED), random.Random(SEED), {}
    drawn = renders(asked)
    for name in QUESTIONS:
        told = [(picture, d) for picture, d in zip(drawn, asked, strict=True) if name in answers(d)]
        captions = [d.caption() for _, d in told] + [altered(d, name, rng).caption() for _, d in told]
        scores = judge.similarities([picture for picture, _ in told], captions)
        own, other = scores.diagonal(), scores.diagonal(len(told))
        prefers[name] = float((own > other).float().mean())
    return prefers


@dataclass(frozen=True)
class Ranking:
    """Shares in which a held-out subject is nearer to itself in another scene than to ``another`` of its kind,
    and than to that other scene ``melted``, which keeps its colours alone."""

    another: float
    melted: float


def ranking(judge: ImageJudge, kind: str, subjects: int) -> Ranking:
    """How far ``judge`` tells ``subjects`` of ``kind`` apart, and from what only has their colours."""
    seen = [list(islice(pictures(HELD_OUT_SUBJECTS + i, SIZE, "judge", kind), 2)) for i in range(subjects)]
    first, second = ([pair[i].image for pair in seen] for i in range(2))
    one, other, broken = (judge.embed(shown) for shown in (first, second, _melted(second)))
    cosines = one @ other.T
    own = cosines.diagonal()
    another = (own.unsqueeze(1) > cosines).sum() / (subjects * (subjects - 1))
    return Ranking(float(another), float((own > (one * broken).sum(dim=1)).float().mean()))


def _melted(shown: Sequence[Image.Image]) -> list[Image.Image]:
    pixels = to_tensor(np.stack([np.asarray(picture) for picture in shown]))
    melted = melt(pixels, torch.Generator().manual_seed(SEED))
    arrays = ((melted + 1) * 127.5).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(array) for array in arrays]


def lines(text: TextJudge, image: ImageJudge, count: int, subjects: int) -> list[str]:
    """All figures, as printed."""
    told = [f"reader, {count} held-out prompts: called right in renders, and in renders of something else"]
    trust = trust_of_reader(Reader.load(), count)
    told += [f"  {name:12}{trust.real[name]:8.1%}{trust.mismatched[name]:8.1%}" for name in QUESTIONS]
    told.append("image-text model: prefers the caption to one with another")
    told += [f"  {name:12}{share:8.1%}" for name, share in trust_of_text_judge(text, count).items()]
    asked = held_out_prompts(64, SEED)
    first = text.own_text_first(renders(asked), [d.caption() for d in asked])
    told.append(f"  finds the caption among 64: {first:.1%}")
    told.append(
        f"image encoder, {subjects} held-out subjects: the same one ranked above another, and above itself melted"
    )
    for kind in KINDS:
        ranked = ranking(image, kind, subjects)
        told.append(f"  {kind:12}{ranked.another:8.1%}{ranked.melted:8.1%}")
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300, help="prompts")
    parser.add_argument("--subjects", type=int, default=200, help="of each kind")
    parser.add_argument("--image-text", default=IMAGE_TEXT, help="folder or hub id of a CLIP model")
    parser.add_argument("--image", default=IMAGE, help="folder or hub id of an image encoder: a CLIP, or a DINO")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    disable_progress_bar()
    judges = TextJudge.load(arguments.image_text), ImageJudge.load(arguments.image)
    print("\n".join(lines(*judges, arguments.count, arguments.subjects)))


if __name__ == "__main__":
    main()
