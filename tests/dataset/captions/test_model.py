"""Captions by small random models, loaded from folders as real ones are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from lora_service.dataset.captions.model import load_caption_model
from lora_service.dataset.load import load_dataset
from lora_service.dataset.options import CaptionModelRef, DatasetOptions
from lora_service.errors import InputError
from tests.dataset.picture_makers import picture, png, zipped
from tests.errors import raises

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]", "a", "dog", "on", "grass", "red", "blue"]


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BLIP of a few thousand random weights that knows a dozen words."""
    folder = tmp_path_factory.mktemp("blip")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    torch.manual_seed(0)
    side = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = side | {"vocab_size": len(WORDS), "bos_token_id": 5, "sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0}
    config = BlipConfig(
        text_config=text | {"encoder_hidden_size": 16, "max_position_embeddings": 64},
        vision_config=side | {"image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    BlipForConditionalGeneration(config).save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that is sure of "blue_sky", then of "dog", of every picture."""
    folder = tmp_path_factory.mktemp("tagger")
    config = ViTConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8,
        id2label={0: "dog", 1: "blue_sky", 2: "car"}, problem_type="multi_label_classification",
    )  # fmt: skip
    network = ViTForImageClassification(config)
    network.classifier.weight.data.zero_()
    network.classifier.bias.data = torch.tensor([1.0, 3.0, -3.0])
    network.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_blip_captions_each_image(blip: Path) -> None:
    captions = load_caption_model(CaptionModelRef(str(blip)))([picture(seed) for seed in range(10)])
    assert len(captions) == 10
    assert set(" ".join(captions).split()) <= set(WORDS)
    assert captions == load_caption_model(CaptionModelRef(str(blip)))([picture(seed) for seed in range(10)])


def test_a_classifier_writes_its_likeliest_tags_first(tagger: Path) -> None:
    assert load_caption_model(CaptionModelRef(str(tagger)))([picture(1)]) == ["blue sky, dog"]


def test_model_captions_name_the_subject_and_files_win(tagger: Path, tmp_path: Path) -> None:
    upload = tmp_path / "upload.zip"
    upload.write_bytes(zipped({"a.png": png(1), "b.png": png(2), "b.txt": b"TOK at sea"}))
    options = DatasetOptions(
        resolution=64, task="object", caption_mode="model", caption_model=CaptionModelRef(str(tagger))
    )
    report = load_dataset(upload, options, tmp_path / "job").report
    assert [(each.caption_source, each.captions) for each in report.used] == [
        ("model", ("{}, blue sky, dog",)),
        ("file", ("{} at sea",)),
    ]


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with raises(InputError, field="caption_model") as refused:
        load_caption_model(CaptionModelRef(str(tmp_path)))
    assert refused.value.value == str(tmp_path)
