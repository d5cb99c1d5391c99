"""Measure how reliable the judges are, on pictures and subjects that they were not trained on.

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

from lora_service.models.image_judge import EMBEDDED_JUDGE, ImageJudge
from tools.embedded.pool import SIZE, to_tensor
from tools.judges.datasets import melt
from tools.judges.judging import IMAGE_TEXT, TextJudge
from tools.judges.questions import QUESTIONS, answers, change_answer
from tools.judges.reader import Reader
from tools.synthetic.canvas import downscale
from tools.synthetic.captions import held_out_prompts
from tools.synthetic.creatures import HELD_OUT_SUBJECTS
from tools.synthetic.description import Description
from tools.synthetic.subjects import KINDS, pictures

SEED = 2_000_000
"""Seed of the validation pictures."""


@dataclass(frozen=True)
class ReaderScores:
    """Shares of pictures, by question, in which the reader gives the true answer, and in which it gives a false one."""

    accuracy: dict[str, float]
    false_positives: dict[str, float]


def render(descriptions: Sequence[Description], seed: int = SEED) -> list[Image.Image]:
    """Draw each of ``descriptions`` as the synthetic dataset does."""
    rng = random.Random(f"render {seed}")
    return [downscale(description.draw(rng), SIZE) for description in descriptions]


def accuracy_by_question(
    predictions: Sequence[dict[str, str]], descriptions: Sequence[Description]
) -> dict[str, float]:
    """Return the share of correct predictions, by question, among the pictures whose description answers it."""
    correct: dict[str, list[bool]] = {name: [] for name in QUESTIONS}
    for prediction, description in zip(predictions, descriptions, strict=True):
        for name, answer in answers(description).items():
            correct[name].append(prediction[name] == answer)
    return {name: sum(values) / max(1, len(values)) for name, values in correct.items()}


def score_reader(reader: Reader, count: int, pictures: Sequence[Image.Image] = ()) -> ReaderScores:
    """Compare the predictions of ``reader`` on ``count`` renders with their true answers, and with random false ones.

    ``pictures`` replace the renders by other pictures of the same descriptions, such as their VAE reconstructions.
    """
    prompts = held_out_prompts(count, SEED)
    predictions, rng = reader.read(pictures or render(prompts)), random.Random(SEED)
    false_positives = {}
    for name in QUESTIONS:
        pairs = [
            (prediction, change_answer(prompt, name, rng))
            for prediction, prompt in zip(predictions, prompts, strict=True)
            if name in answers(prompt)
        ]
        changed = [prompt for _, prompt in pairs]
        false_positives[name] = accuracy_by_question([prediction for prediction, _ in pairs], changed)[name]
    return ReaderScores(accuracy_by_question(predictions, prompts), false_positives)


def caption_preference(judge: TextJudge, count: int) -> dict[str, float]:
    """Return, by question, the share of renders more similar to their caption than to one with a false answer."""
    prompts, rng, preference = held_out_prompts(count, SEED), random.Random(SEED), {}
    renders = render(prompts)
    for name in QUESTIONS:
        pairs = [(picture, d) for picture, d in zip(renders, prompts, strict=True) if name in answers(d)]
        captions = [d.caption() for _, d in pairs] + [change_answer(d, name, rng).caption() for _, d in pairs]
        similarities = judge.similarities([picture for picture, _ in pairs], captions)
        to_true, to_false = similarities.diagonal(), similarities.diagonal(len(pairs))
        preference[name] = float((to_true > to_false).float().mean())
    return preference


@dataclass(frozen=True)
class RankingAccuracy:
    """Shares of comparisons in which a held-out subject is most similar to itself in another scene.

    Attributes:
        against_others: compared with another subject of its kind.
        against_melted: compared with the other scene melted, which has the subject's colours but not its shape.
    """

    against_others: float
    against_melted: float


def rank_subjects(judge: ImageJudge, kind: str, subjects: int) -> RankingAccuracy:
    """Measure ``judge`` on two pictures each of ``subjects`` held-out subjects of ``kind``."""
    pairs = [list(islice(pictures(HELD_OUT_SUBJECTS + i, SIZE, "judge", kind), 2)) for i in range(subjects)]
    first, second = ([pair[i].image for pair in pairs] for i in range(2))
    first_embeds, second_embeds, melted_embeds = (judge.embed(images) for images in (first, second, _melted(second)))
    cosines = first_embeds @ second_embeds.T
    same = cosines.diagonal()
    against_others = (same.unsqueeze(1) > cosines).sum() / (subjects * (subjects - 1))
    against_melted = (same > (first_embeds * melted_embeds).sum(dim=1)).float().mean()
    return RankingAccuracy(float(against_others), float(against_melted))


def _melted(images: Sequence[Image.Image]) -> list[Image.Image]:
    pixels = to_tensor(np.stack([np.asarray(image) for image in images]))
    melted = melt(pixels, torch.Generator().manual_seed(SEED))
    arrays = ((melted + 1) * 127.5).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(array) for array in arrays]


def report(text_judge: TextJudge, image_judge: ImageJudge, count: int, subjects: int) -> list[str]:
    """Return the lines of the report on all judges."""
    lines = [f"reader, {count} held-out prompts: accuracy on renders, and false positives"]
    scores = score_reader(Reader.load(), count)
    lines += [f"  {name:12}{scores.accuracy[name]:8.1%}{scores.false_positives[name]:8.1%}" for name in QUESTIONS]
    lines.append("image-text model: prefers the caption to one with a false answer")
    lines += [f"  {name:12}{share:8.1%}" for name, share in caption_preference(text_judge, count).items()]
    prompts = held_out_prompts(64, SEED)
    top_1 = text_judge.top_1_accuracy(render(prompts), [prompt.caption() for prompt in prompts])
    lines.append(f"  top-1 accuracy among 64 captions: {top_1:.1%}")
    lines.append(
        f"image encoder, {subjects} held-out subjects: ranks the same one above another, and above itself melted"
    )
    for kind in KINDS:
        ranking = rank_subjects(image_judge, kind, subjects)
        lines.append(f"  {kind:12}{ranking.against_others:8.1%}{ranking.against_melted:8.1%}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300, help="number of prompts")
    parser.add_argument("--subjects", type=int, default=200, help="number of subjects of each kind")
    parser.add_argument("--image-text", default=IMAGE_TEXT, help="folder or hub id of a CLIP model")
    parser.add_argument("--image", default=EMBEDDED_JUDGE, help="folder or hub id of a CLIP or a DINO")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    disable_progress_bar()
    judges = TextJudge.load(arguments.image_text), ImageJudge.load(arguments.image)
    print("\n".join(report(*judges, arguments.count, arguments.subjects)))


if __name__ == "__main__":
    main()
