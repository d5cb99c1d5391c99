"""The subjects, of three kinds, and the prompts that ask for them; no model knows one from number 1,000,000 on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

from PIL import Image

from lora_service.demo.show import PROMPTS
from tools.synthetic.creatures import HELD_OUT_SUBJECTS
from tools.synthetic.subjects import pictures, write_zip

TRAINING_PICTURES, SHOWN_PICTURES, REFERENCE_PICTURES = 10, 6, 24
TUNING = (HELD_OUT_SUBJECTS, HELD_OUT_SUBJECTS + 1)
"""Subjects, of each kind, that settings are chosen with."""
REPORTED = (HELD_OUT_SUBJECTS + 100, HELD_OUT_SUBJECTS + 101)
"""Subjects, of each kind, that results are told of."""
STYLE_PROMPTS = (
    "a red star on a blue background{}",
    "a yellow car in a meadow{}",
    "a green fish on a pink background{}",
    "a brown house in the snow{}",
    "a purple mug on a striped white background{}",
    "a person with short black hair and a smile on the beach{}",
)


@dataclass(frozen=True)
class EvaluationPrompts:
    """The class word of a training, and the prompts of its evaluation; the fields are those of ``Evaluation``."""

    class_word: str
    prompts: Sequence[str]
    base_subject: str
    lora_subject: str = "{}"

    def of_lora(self, word: str) -> list[str]:
        """Return the prompts with the subject's ``word`` in its place."""
        return [prompt.format(self.lora_subject.format(word)) for prompt in self.prompts]

    def of_base(self) -> list[str]:
        """Return the prompts with the nearest that the base knows in the subject's place."""
        return [prompt.format(self.base_subject) for prompt in self.prompts]


PROMPTS_BY_KIND = {
    "object": EvaluationPrompts("monster", PROMPTS, "a monster"),
    "face": EvaluationPrompts("person", PROMPTS, "a person"),
    "style": EvaluationPrompts("", STYLE_PROMPTS, "", " in the style of {}"),
}


@dataclass(frozen=True)
class Subject:
    """A face, an object or a style, by its kind and its number."""

    kind: str
    number: int

    @property
    def prompts(self) -> EvaluationPrompts:
        """The prompts of its kind."""
        return PROMPTS_BY_KIND[self.kind]

    def dataset(self, folder: Path) -> Path:
        """Return the zip of its training pictures, which is written if it is not there."""
        path = folder / f"{self.kind}-{self.number}.zip"
        if not path.exists():
            write_zip(path, self.number, TRAINING_PICTURES, 256, self.kind)
        return path

    def references(self, side: int, start: int = 0) -> list[Image.Image]:
        """Return pictures of it that are not trained on."""
        return list(_held_out(self, side)[start : start + REFERENCE_PICTURES])


@lru_cache
def _held_out(subject: Subject, side: int) -> tuple[Image.Image, ...]:
    """Draw them once: every measurement of a training compares with the same."""
    series = pictures(subject.number, side, "judge", subject.kind)
    return tuple(picture.image for picture in islice(series, 2 * REFERENCE_PICTURES))
