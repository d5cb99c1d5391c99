"""The judges: as accurate as documented on pictures they were not trained on, and replaceable by CLIP and DINO."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    PreTrainedModel,
)

from lora_service.models.image_judge import ImageJudge
from tools.judges.datasets import augment, melt
from tools.judges.judging import JUDGES, TextJudge
from tools.judges.questions import (
    NO_ANSWER,
    QUESTIONS,
    answer_indices,
    answers,
    change_answer,
    random_description,
)
from tools.judges.reader import READER, Reader
from tools.judges.validate import SEED, accuracy_by_question, caption_preference, rank_subjects, render, score_reader
from tools.synthetic.captions import held_out_prompts
from tools.synthetic.description import Description, Item
from tools.synthetic.faces import CartoonFace
from tools.synthetic.scenes import Background
from tools.synthetic.subjects import KINDS

RED_STAR = Description((Item("star", "red"),), Background("striped", "blue"), place="at the left")


def test_a_description_of_one_item_answers_as_its_caption_does() -> None:
    expected = {"color": "red", "background": "on a striped blue background", "thing": "star", "place": "at the left"}
    assert answers(RED_STAR) == expected
    assert all(answer in RED_STAR.caption() for answer in expected.values())


def test_faces_and_pairs_answer_nothing() -> None:
    face = Description((CartoonFace.sample(random.Random(0)),), Background("plain", "blue"))
    pair = Description((Item("star", "red"), Item("mug", "pink")), Background("plain", "blue"))
    for description in (face, pair):
        assert answers(description) == {}
        assert answer_indices(description) == [NO_ANSWER] * len(QUESTIONS)


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_changed_description_differs_in_one_answer(question: str) -> None:
    before, after = answers(RED_STAR), answers(change_answer(RED_STAR, question, random.Random(1)))
    assert {name for name in before if before[name] != after[name]} == {question}


def test_every_answer_has_an_index() -> None:
    rng = random.Random(2)
    assert all(index >= 0 for _ in range(50) for index in answer_indices(random_description(rng, "at the top")))


def test_augmented_pictures_stay_in_range_and_differ_from_each_other() -> None:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(1, 3, 16, 16, generator=generator).repeat(4, 1, 1, 1) * 2 - 1
    augmented = augment(pictures, generator)
    assert augmented.shape == pictures.shape
    assert augmented.abs().max() <= 1
    assert len({round(float(one.std()), 5) for one in augmented}) == 4


def test_a_melted_picture_keeps_its_colours_and_loses_its_shapes() -> None:
    (image,) = render([RED_STAR])
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0).float() / 127.5 - 1
    melted = melt(pixels, torch.Generator().manual_seed(0))
    assert (melted - pixels).abs().mean() > 0.1
    torch.testing.assert_close(melted.mean(dim=(2, 3)), pixels.mean(dim=(2, 3)), rtol=0, atol=0.1)


def test_the_reader_is_accurate_on_renders_with_few_false_positives() -> None:
    scores = score_reader(Reader.load(), 200)
    assert min(scores.accuracy.values()) >= 0.97, scores.accuracy
    assert max(scores.false_positives.values()) <= 0.15, scores.false_positives


def test_the_accuracy_counts_only_questions_with_an_answer() -> None:
    without_place = Description((Item("star", "red"),), Background("plain", "blue"))
    prediction = {"color": "red", "background": "on a blue background", "thing": "mug", "place": "at the top"}
    assert accuracy_by_question([prediction, prediction], [without_place, RED_STAR]) == {
        "color": 1.0,
        "background": 0.5,
        "thing": 0.0,
        "place": 0.0,
    }


def test_a_reader_of_another_dataset_is_refused(tmp_path: Path) -> None:
    (tmp_path / "questions.json").write_text(json.dumps({"color": ["red"]}))
    with pytest.raises(ValueError, match="trained on another synthetic dataset"):
        Reader.load(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_the_image_judge_ranks_a_held_out_subject_above_others_and_above_its_colours(kind: str) -> None:
    ranking = rank_subjects(ImageJudge.load(), kind, 60)
    assert ranking.against_others >= 0.9
    assert ranking.against_melted >= 0.75


def test_the_text_judge_prefers_the_true_caption() -> None:
    preference = caption_preference(TextJudge.load(), 100)
    assert min(preference.values()) >= 0.8, preference
    prompts = held_out_prompts(32, SEED)
    assert TextJudge.load().top_1_accuracy(render(prompts), [d.caption() for d in prompts]) >= 0.5


def test_the_judges_are_small() -> None:
    assert READER.parent == JUDGES
    assert sum(path.stat().st_size for path in JUDGES.rglob("*.safetensors")) <= 6_000_000


TINY = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize(
    "model",
    [
        CLIPModel(CLIPConfig(text_config=TINY, vision_config=TINY | {"image_size": 32, "patch_size": 8})),
        Dinov2Model(Dinov2Config(**{k: v for k, v in TINY.items() if k != "intermediate_size"}, image_size=32)),
    ],
    ids=["CLIP", "DINO"],
)
def test_other_encoders_can_be_the_image_judge(model: PreTrainedModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(tmp_path)
    if model.config.model_type == "clip":
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
            tmp_path
        )
    judge = ImageJudge.load(tmp_path)
    red, blue = (Image.effect_mandelbrot((40, 40), box, 50).convert("RGB") for box in ((-2, -1, 1, 1), (-1, -1, 0, 0)))
    assert judge.similarity([red], [red]) == pytest.approx(1, abs=1e-4)
    assert judge.similarity([red], [blue]) < 1
