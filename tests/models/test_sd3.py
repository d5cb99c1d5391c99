"""Stable Diffusion 3's text encoders against diffusers' own ``encode_prompt``, and what stands for new tokens in T5."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lora_service.errors import BaseModelError, InputError
from lora_service.generation.generator import ImageGenerator
from lora_service.generation.request import GenerateRequest
from lora_service.lora.scale import Scale
from lora_service.lora.weights import LoraWeights
from lora_service.models.components import check_components
from lora_service.models.diffusers_folder import load_folder
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.sd3_text_encoders import T5, T5_POSITIONS
from lora_service.training.adapters.textual_inversion import added_tokens
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.trainer import Trainer
from tests.errors import raises
from tests.small_base import picture_zip
from tests.small_flow import flow_pipeline_of, small_flow_base, small_flow_components

NO_T5 = {"text_encoder_3": None, "tokenizer_3": None}
ROWS = {"text_encoder": torch.ones(2, 32), "text_encoder_2": torch.ones(2, 48)}


def without_t5(base: DiffusionBase) -> DiffusionBase:
    encoders, tokenizers = dict(base.text.encoders), dict(base.text.tokenizers)
    del encoders[T5], tokenizers[T5]
    return replace(base, text=replace(base.text, encoders=encoders, tokenizers=tokenizers))


@pytest.mark.parametrize("has_t5", [True, False])
@pytest.mark.parametrize("clip_skip", [None, 1])
def test_a_text_is_encoded_as_diffusers_encodes_it(has_t5: bool, clip_skip: int | None) -> None:
    base = small_flow_base("sd3") if has_t5 else without_t5(small_flow_base("sd3"))
    texts = ["a photo of a dog on the beach", ""]
    pipeline = flow_pipeline_of(base, **({} if has_t5 else NO_T5))
    with torch.no_grad():
        # diffusers counts the layers from the one that is read by default, the last but one.
        skip = None if clip_skip is None else clip_skip - 2
        theirs = pipeline.encode_prompt(texts, None, None, do_classifier_free_guidance=False, clip_skip=skip)
        ours = base.text.with_clip_skip(clip_skip).encode(base.text.tokenize(texts))
    assert torch.equal(ours.states, theirs[0])
    assert ours.pooled is not None
    assert torch.equal(ours.pooled, theirs[2])
    assert ours.states.shape == (2, 77 + T5_POSITIONS, 96)
    assert ours.states.shape[1] == base.text.positions
    assert bool(ours.states[:, 77:].any()) is has_t5


def test_every_layer_of_clip_learns_as_both_are_pooled() -> None:
    text = small_flow_base("sd3").text
    assert list(text.learning) == ["text_encoder", "text_encoder_2"]
    assert [text.unused_layers(name) for name in text.learning] == [(), ()]
    assert list(text.companions) == [T5]


def test_states_that_t5_has_made_are_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    base = small_flow_base("sd3")
    ids = base.text.tokenize(["a dog", "a cat", "the beach"])
    with torch.no_grad():
        expected = base.text.encode(ids[torch.tensor([2, 0])])
        read = base.text.read_by_companions(ids)
        monkeypatch.setattr(base.text.encoders[T5], "forward", None)
        found = base.text.encode(read[torch.tensor([2, 0])].first(base.text.positions))
    torch.testing.assert_close(found.states, expected.states)


def test_t5_reads_the_trigger_in_place_of_new_tokens() -> None:
    base = small_flow_base("sd3")
    with added_tokens(base, ("<s1>", "<s2>"), ROWS, {"<s1>": "zwx dog", "<s2>": "zwx dog"}) as tokens:
        ids = tokens.text.tokenize(["a photo of <s1><s2>", "a photo of zwx dog"])
    assert torch.equal(ids.by_encoder[T5][0], ids.by_encoder[T5][1])
    assert not torch.equal(ids.by_encoder["text_encoder"][0], ids.by_encoder["text_encoder"][1])


@pytest.mark.parametrize(("trigger", "read"), [("zwx dog", "a zwx dog!"), ("", "a !")])
def test_in_a_request_t5_reads_what_it_read_in_training(
    trigger: str, read: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, texts = small_flow_base("sd3"), list[str]()
    tokenizer = type(base.text.tokenizers[T5])
    asked = tokenizer.__call__

    def listen(self: Any, text: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("max_length") == T5_POSITIONS:
            texts.extend(text)
        return asked(self, text, *args, **kwargs)

    monkeypatch.setattr(tokenizer, "__call__", listen)
    rows = {f"<s{i + 1}>": {encoder: each[i] for encoder, each in ROWS.items()} for i in range(2)}
    lora = LoraWeights({}, rows, {"modelspec.trigger_phrase": trigger})
    request = GenerateRequest.of({"prompt": "a <1>!", "num_inference_steps": 1, "seed": 1})
    generator = ImageGenerator(base)
    drawn = generator.generate(request, [(lora, Scale(1.0, 1.0))])[0]
    assert read in texts
    assert drawn.settings["prompt"] == "a <s1><s2>!"
    texts.clear()
    generator.generate(request.model_copy(update={"prompt": "a <s1>!"}), [])
    assert "a <s1>!" in texts  # words of no LoRA are words


def test_several_pictures_of_a_request_are_drawn_together() -> None:
    request = GenerateRequest.of({"prompt": "a dog", "seed": 1, "num_outputs": 2, "num_inference_steps": 1})
    drawn = ImageGenerator(small_flow_base("sd3")).generate(request, [])
    assert [each.seed for each in drawn] == [1, 2]


def test_a_folder_may_do_without_t5_and_not_without_clip(tmp_path: Path) -> None:
    base = without_t5(small_flow_base("sd3"))
    pipeline = flow_pipeline_of(base, **NO_T5)
    pipeline.save_pretrained(tmp_path)
    components = load_folder(tmp_path, "here", torch.float32)
    check_components("here", components)
    assert components.family.name == "sd3"
    assert list(components.text_encoders) == ["text_encoder", "text_encoder_2"]
    del components.text_encoders["text_encoder_2"]  # type: ignore[attr-defined]
    with raises(BaseModelError, code="incomplete_model", field="BASE_MODEL"):
        check_components("here", components)


def test_text_encoders_of_another_model_are_refused() -> None:
    components = small_flow_components("sd3")
    components.backbone.register_to_config(pooled_projection_dim=2048)
    with raises(BaseModelError, code="incomplete_model", field="BASE_MODEL"):
        check_components("here", components)


def test_sides_without_position_embeddings_are_refused(tmp_path: Path) -> None:
    base = small_flow_base("sd3")  # of 24 positions, each of 8 pixels
    with raises(InputError, field="height"):
        ImageGenerator(base).generate(GenerateRequest.of({"height": 256, "width": 32}), [])
    with raises(InputError, field="resolution"):
        Trainer(base, tmp_path / "job").run(picture_zip(tmp_path / "p.zip"), TrainConfig.of({"resolution": 256}))
    long, wide = tmp_path / "long.png", {"resolution": 128, "aspect_ratio_buckets": True}
    Image.new("RGB", (512, 64), "red").save(long)
    with raises(InputError, field="resolution"):
        Trainer(base, tmp_path / "next").run(long, TrainConfig.of(wide))
