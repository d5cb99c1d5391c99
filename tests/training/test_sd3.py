"""Trainings of Stable Diffusion 3, whose CLIP encoders learn beside a frozen T5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lora_service.errors import InputError
from lora_service.generation.generator import ImageGenerator
from lora_service.generation.request import GenerateRequest
from lora_service.lora.base_detection import detect_lora_base
from lora_service.lora.files import read_lora
from lora_service.lora.scale import Scale
from lora_service.models.sd3_text_encoders import T5
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.runs.starting_lora import StartingLora
from lora_service.training.trainer import Trainer, TrainResult
from tests.errors import raises
from tests.small_base import hashes, picture_zip
from tests.small_flow import flow_pipeline_of, small_flow_base

STEPS = {"task": "object", "seed": 1, "max_train_steps_ti": 2, "max_train_steps_tuning": 2, "class_word": "dog"}
FAST = {"learning_rate_ti": 0.05, "learning_rate_text": 0.03, "learning_rate_unet": 0.1, "samples": 0}
CLIPS = ["text_encoder", "text_encoder_2"]


def train(folder: Path, base: Any, log: Any = print, start: StartingLora | None = None, **inputs: Any) -> TrainResult:
    trainer = Trainer(base, folder / "job", log=log, start=start)
    return trainer.run(picture_zip(folder / "p.zip"), TrainConfig.of(STEPS | inputs))


def test_both_stages_teach_clip_and_leave_t5_and_the_base_alone(tmp_path: Path) -> None:
    base, lines = small_flow_base("sd3"), list[str]()
    before = hashes(base)
    frozen = {key: value.clone() for key, value in base.text.encoders[T5].state_dict().items()}
    result = train(tmp_path, base, lines.append, **FAST, continue_inversion=True)
    weights = read_lora(result.path)
    assert sorted(weights.layers) == [*CLIPS, "transformer"]
    assert all(sorted(rows) == CLIPS for rows in weights.embeddings.values())
    assert tuple(weights.embeddings) == ("<s1>", "<s2>")
    for component, layers in weights.layers.items():
        assert any(layer.up.abs().max() > 0 for layer in layers.values()), component  # type: ignore[attr-defined]
    assert set(result.stages) == {"stage 1", "stage 2"}
    assert f"{T5}, which learns no new tokens, reads {weights.trigger!r} in place of <s1><s2>" in lines
    assert hashes(base) == before
    assert all(torch.equal(value, frozen[key]) for key, value in base.text.encoders[T5].state_dict().items())
    assert weights.metadata["modelspec.architecture"] == "stable-diffusion-v3.5-medium/lora"


@pytest.mark.parametrize("lora_format", ["diffusers", "kohya"])
def test_plain_diffusers_draws_with_the_file_as_we_do(lora_format: str, tmp_path: Path) -> None:
    path = train(tmp_path, small_flow_base("sd3"), **FAST, lora_format=lora_format).path
    weights = read_lora(path)
    call = {"num_inference_steps": 2, "guidance_scale": 2.0, "width": 32, "height": 32}
    ours, request = (
        ImageGenerator(small_flow_base("sd3")),
        GenerateRequest.of({"prompt": "a photo of <1>", "seed": 3, **call}),
    )
    scaled, bare = (
        np.asarray(ours.generate(request, [(weights, scale)])[0].image, float)
        for scale in (Scale(1.0, 1.0), Scale(0.0, 0.0))
    )
    assert np.abs(scaled - bare).max() > 5
    if lora_format == "kohya":  # whose names of these layers diffusers does not read
        return
    plain = flow_pipeline_of(small_flow_base("sd3"))
    plain.load_lora_weights(path)
    for name, rows in weights.embeddings.items():
        for part in CLIPS:
            encoder, tokenizer = (getattr(plain, each) for each in (part, part.replace("text_encoder", "tokenizer")))
            tokenizer.add_tokens(name)
            encoder.resize_token_embeddings(len(tokenizer))
            encoder.get_input_embeddings().weight.data[tokenizer.convert_tokens_to_ids(name)] = rows[part].float()
            getattr(encoder, "text_model", encoder).eos_token_id = tokenizer.eos_token_id
    drawn = plain(
        "a photo of <s1><s2>", prompt_3=f"a photo of {weights.trigger}", **call,
        generator=torch.Generator().manual_seed(3),
    ).images[0]  # fmt: skip
    assert np.abs(np.asarray(drawn, float) - scaled).max() <= 1


def test_t5_reads_each_caption_once_while_clip_learns(tmp_path: Path) -> None:
    base, read, learned = small_flow_base("sd3"), list[int](), list[int]()
    base.text.encoders[T5].register_forward_hook(lambda *passed: read.append(1))
    base.text.encoders["text_encoder"].register_forward_hook(lambda *passed: learned.append(1))
    result = train(tmp_path, base, samples=0, max_train_steps_ti=6, max_train_steps_tuning=0)
    assert len(read) == 2  # for the steps and for the held-out loss
    assert len(learned) > 6
    assert detect_lora_base(read_lora(result.path)) == "Stable Diffusion 3"  # although the tokens could be XL's


def test_without_a_rate_for_text_clip_stays_and_captions_are_encoded_once(tmp_path: Path) -> None:
    base = small_flow_base("sd3")
    result = train(tmp_path, base, samples=0)
    assert result.resolved.config.learning_rate_text == 0
    assert list(read_lora(result.path).layers) == ["transformer"]


def test_a_training_goes_on_from_a_file_with_tokens(tmp_path: Path) -> None:
    first = train(tmp_path, small_flow_base("sd3"), **FAST)
    (tmp_path / "next").mkdir()
    start, lines = StartingLora.of(read_lora(first.path)), list[str]()
    second = train(tmp_path / "next", small_flow_base("sd3"), lines.append, start, **FAST)
    assert second.resolved.tokens == ("<s1>", "<s2>")
    news = [line.rpartition(", ")[2] for line in lines if "go on from start_from" in line]
    # The last block's queries of the text lead nowhere: that layer learns nothing, and is in no file.
    assert news == ["1 are new", "0 are new", "0 are new"]


def test_long_captions_are_no_chunks_of_clip(tmp_path: Path) -> None:
    with raises(InputError, code="not_for_this_base", field="max_token_length"):
        train(tmp_path, small_flow_base("sd3"), max_token_length="150")
