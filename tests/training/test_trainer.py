"""Whole trainings on a tiny base: the file, the base afterwards, and what each input does."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_service.errors import DivergedError, InputError, LoraFileError, PicturesError
from lora_service.lora.files import read_lora
from lora_service.lora.weights import LoraSubject
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.training.callbacks.training_progress import TrainingProgress
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.trainer import Trainer, TrainResult
from tests.dataset.picture_makers import png, zipped
from tests.errors import raises
from tests.small_base import hashes, picture_zip, pipeline_of, small_base

STEPS = {"task": "object", "seed": 1, "max_train_steps_ti": 2, "max_train_steps_tuning": 2, "resolution": 32}


def train(tmp_path: Path, base: DiffusionBase | None = None, **inputs: Any) -> TrainResult:
    folder = tmp_path / "job"
    tmp_path.mkdir(parents=True, exist_ok=True)
    job = Trainer(base or small_base(), folder)
    return job.run(picture_zip(tmp_path / "pictures.zip"), TrainConfig.of(STEPS | inputs))


def test_the_file_holds_the_layers_the_tokens_and_the_story(tmp_path: Path) -> None:
    weights = read_lora(train(tmp_path, lora_rank=3).path)
    assert weights.format == "kohya"
    assert (weights.rank, weights.alpha) == (3, 3.0)
    # 6 transformer blocks of 2 × 4 attention projections and one GEGLU; 2 layers of 4.
    assert {component: len(layers) for component, layers in weights.layers.items()} == {
        "unet": 6 * 9,
        "text_encoder": 2 * 4,
    }
    assert weights.tokens == ("<s1>", "<s2>")
    report = json.loads(weights.metadata["lora_service.report"])
    assert report["settings"]["max_train_steps_ti"] == 2
    assert report["pictures"]["used"] == 3
    assert len(report["losses"]["stage 1"]) == 2
    assert weights.trigger == weights.metadata["modelspec.trigger_phrase"] == report["settings"]["trigger"]


def test_the_base_is_bit_identical_afterwards(tmp_path: Path) -> None:
    base = small_base()
    before = hashes(base)
    train(tmp_path, base)
    assert hashes(base) == before
    assert not base.unet.training
    assert not any(p.requires_grad for part in base.components.values() for p in part.parameters())


def test_the_base_is_bit_identical_after_an_interruption(tmp_path: Path) -> None:
    base = small_base()
    before = hashes(base)

    def stop(progress: TrainingProgress) -> None:
        if progress.stage.startswith("stage 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(base, tmp_path / "job", on_progress=stop).run(picture_zip(tmp_path / "p.zip"), TrainConfig.of(STEPS))
    assert hashes(base) == before
    assert not (tmp_path / "job" / "lora.safetensors").exists()


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path: Path) -> None:
    one, same, other = (
        train(tmp_path / str(i), seed=seed, flip=True, color_jitter=True).path.read_bytes()
        for i, seed in enumerate((5, 5, 6))
        if not (tmp_path / str(i)).mkdir()
    )
    assert one == same
    assert one != other


def test_plain_diffusers_loads_the_file_and_draws_as_we_do(tmp_path: Path) -> None:
    from lora_service.lora.patcher import Patcher
    from lora_service.lora.scale import Scale

    base = small_base()
    path = train(tmp_path, base, learning_rate_unet=0.05, learning_rate_text=0.05).path
    pipeline = pipeline_of(base)
    x, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([500])
    ids = base.text.tokenize(["a photo of a dog"])

    def output() -> torch.Tensor:
        with torch.inference_mode():
            return base.denoise(x, t, base.text.encode(ids)).clone()

    bare = output()
    pipeline.load_lora_weights(path)
    theirs = output()
    pipeline.unload_lora_weights()
    Patcher(base.components, base.tokenizers).apply([(read_lora(path), Scale(1.0, 1.0))])
    assert (theirs - bare).abs().max() > 1e-3
    torch.testing.assert_close(output(), theirs, atol=2e-5, rtol=1e-4)


def test_without_stage_1_there_are_no_tokens(tmp_path: Path) -> None:
    result = train(tmp_path, max_train_steps_ti=0, trigger="ohwx")
    weights = read_lora(result.path)
    assert weights.tokens == ()
    assert weights.trigger == "ohwx"


def test_without_stage_2_there_are_only_tokens(tmp_path: Path) -> None:
    weights = read_lora(train(tmp_path, max_train_steps_tuning=0).path)
    assert weights.tokens == ("<s1>", "<s2>")
    assert not any(weights.layers.values())


def test_a_rate_of_0_leaves_the_text_encoder_alone(tmp_path: Path) -> None:
    weights = read_lora(train(tmp_path, learning_rate_text=0).path)
    assert set(weights.layers) == {"unet"}


def test_tokens_go_on_learning_in_stage_2_only_when_told(tmp_path: Path) -> None:
    def row(folder: str, **inputs: Any) -> torch.Tensor:
        (tmp_path / folder).mkdir()
        return read_lora(train(tmp_path / folder, **inputs).path).embeddings["<s1>"]["text_encoder"]

    alone = row("a", max_train_steps_tuning=0)
    assert torch.equal(row("b", continue_inversion=False), alone)
    assert not torch.equal(row("c", continue_inversion=True, continue_inversion_lr=0.01), alone)


@pytest.mark.parametrize("inputs", [{"gradient_checkpointing": "on"}, {"mixed_precision": "bf16"}, {"snr_gamma": 0}])
def test_options_for_memory_and_loss_run_to_the_end(tmp_path: Path, inputs: dict[str, Any]) -> None:
    assert train(tmp_path, **inputs).path.exists()


def test_checkpointing_gives_the_same_gradients(tmp_path: Path) -> None:
    rows = []
    for i, mode in enumerate(("off", "on")):
        (tmp_path / str(i)).mkdir()
        weights = read_lora(train(tmp_path / str(i), gradient_checkpointing=mode).path)
        rows.append(weights.embeddings["<s1>"]["text_encoder"].float())
    torch.testing.assert_close(rows[0], rows[1], atol=1e-3, rtol=1e-3)


def test_v_prediction_is_trained_too(tmp_path: Path) -> None:
    weights = read_lora(train(tmp_path, small_base("v_prediction")).path)
    assert weights.metadata["modelspec.prediction_type"] == "v"


@pytest.mark.parametrize(
    "inputs",
    [
        {"resolution": 36},
        {"mixed_precision": "fp16"},
        {"initializer_tokens": "a|b|c"},
        {"learning_rate_unet": 0, "learning_rate_text": 0},
    ],
    ids=lambda inputs: next(iter(inputs)),
)
def test_an_input_that_this_base_cannot_take_is_refused(tmp_path: Path, inputs: dict[str, Any]) -> None:
    field, value = next(iter(inputs.items()))
    with raises(InputError, field=field) as caught:
        train(tmp_path, **inputs)
    assert caught.value.value == value


def test_numbers_beyond_the_files_are_a_training_that_came_to_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_lora(path: Path, weights: object, *, format: str) -> None:
        raise LoraFileError("write it as float32", code="not_finite")

    monkeypatch.setattr("lora_service.training.export.write_lora", write_lora)
    with raises(DivergedError) as caught:
        train(tmp_path)
    assert "float32" not in str(caught.value)


def test_a_chosen_trigger_is_rare_and_ends_in_the_class_word(tmp_path: Path) -> None:
    trigger = train(tmp_path, class_word="dog", max_train_steps_ti=0, max_train_steps_tuning=1).resolved.trigger
    assert re.fullmatch(r"[a-z]{6,7} dog", trigger)


def test_warnings_of_inputs_are_in_the_log(tmp_path: Path) -> None:
    lines: list[str] = []
    config = TrainConfig.of(STEPS | {"lr_warmup_steps": 2, "keep_tokens": 3})
    Trainer(small_base(), tmp_path / "job", log=lines.append).run(picture_zip(tmp_path / "p.zip"), config)
    warnings = [line for line in lines if line.startswith("warning: ")]
    assert sum("lr_warmup_steps" in line or "keep_tokens" in line for line in warnings) == 3


def test_the_word_of_a_folder_is_the_trigger_unless_one_is_given(tmp_path: Path) -> None:
    upload = tmp_path / "set.zip"
    upload.write_bytes(zipped({"3_qwx dog/a.png": png(1), "3_qwx dog/a.txt": b"my qwx dog", "reg/1_dog/b.png": png(2)}))
    inputs = {**STEPS, "max_train_steps_ti": 0, "max_train_steps_tuning": 1}
    for trigger, expected in (("", "qwx dog"), ("zkvi", "zkvi")):
        lines: list[str] = []
        job = Trainer(small_base(), tmp_path / expected, log=lines.append)
        result = job.run(upload, TrainConfig.of(inputs | {"trigger": trigger}))
        assert read_lora(result.path).trigger == expected
        assert [image.name for image in result.dataset.images] == ["3_qwx dog/a.png"]
        assert any("'qwx dog', the word of the pictures' folder" in line for line in lines) == (not trigger)
        assert result.dataset.images[0].captions == (("my {}",) if not trigger else ("{}, my qwx dog",))


TWO_FOLDERS = {
    "2_zwx dog/a.png": png(1),
    "2_zwx dog/a.txt": b"my zwx dog",
    "5_vok cat/b.png": png(2),
    "5_vok cat/b.txt": b"a vok cat, not the zwx dog",
    "5_vok cat/c.png": png(3),
}


def test_folders_of_several_words_are_subjects_of_their_own(tmp_path: Path) -> None:
    upload, lines = tmp_path / "set.zip", list[str]()
    upload.write_bytes(zipped(TWO_FOLDERS))
    result = Trainer(small_base(), tmp_path / "job", log=lines.append).run(upload, TrainConfig.of(STEPS))
    images = {image.name: image for image in result.dataset.images}
    assert [image.subject for image in images.values()] == [0, 1, 1]
    assert images["2_zwx dog/a.png"].captions == ("my {}",)
    assert images["5_vok cat/b.png"].captions == ("a {}, not the zwx dog",)
    assert "subject 2: trigger 'vok cat', tokens <s3> <s4>" in lines
    weights = read_lora(result.path)
    assert weights.subjects == (LoraSubject("zwx dog", ("<s1>", "<s2>")), LoraSubject("vok cat", ("<s3>", "<s4>")))
    assert weights.trigger == "zwx dog, vok cat"
    assert "'zwx dog' or 'vok cat'" in weights.metadata["modelspec.usage_hint"]
    assert json.loads(weights.metadata["ss_tag_frequency"]) == {"subject": {"zwx dog": 1, "vok cat": 1}}


def test_a_trigger_of_ones_own_teaches_all_folders_as_one_subject(tmp_path: Path) -> None:
    upload = tmp_path / "set.zip"
    upload.write_bytes(zipped(TWO_FOLDERS))
    result = Trainer(small_base(), tmp_path / "job").run(upload, TrainConfig.of(STEPS | {"trigger": "pets"}))
    assert {image.subject for image in result.dataset.images} == {0}
    assert read_lora(result.path).subjects == (LoraSubject("pets", ("<s1>", "<s2>")),)
    assert "all of them are taught as one" in result.dataset.report.warnings[0]


def test_a_picture_in_no_subjects_folder_is_refused_by_name(tmp_path: Path) -> None:
    upload = tmp_path / "set.zip"
    upload.write_bytes(zipped(TWO_FOLDERS | {"stray.png": png(4)}))
    with raises(PicturesError, code="pictures_without_subject") as refused:
        Trainer(small_base(), tmp_path / "job").run(upload, TrainConfig.of(STEPS))
    assert "stray.png" in str(refused.value)
    many = {f"1_word{n}/{n}.png": png(n) for n in range(9)}
    upload.write_bytes(zipped(many))
    with raises(PicturesError, code="too_many_subjects"):
        Trainer(small_base(), tmp_path / "many").run(upload, TrainConfig.of(STEPS))


def test_captions_are_counted_with_the_tokens_of_the_base(tmp_path: Path) -> None:
    upload = tmp_path / "set.zip"
    upload.write_bytes(zipped({"a.png": png(1), "a.txt": "собака на траве, ".encode() * 24 + b"TOK"}))
    result = Trainer(small_base(), tmp_path / "job").run(upload, TrainConfig.of(STEPS))
    assert "of which the base reads the first 225" in result.dataset.report.used[0].warnings[0]
    assert result.dataset.images[0].captions[0].startswith("{}, ")
    with raises(InputError, field="trigger", code="too_many_tokens"):
        train(tmp_path, trigger="траве " * 10)


def test_long_captions_are_read_in_chunks_or_cut_as_asked(tmp_path: Path) -> None:
    upload = tmp_path / "set.zip"
    upload.write_bytes(zipped({"a.png": png(1), "a.txt": b"TOK " + b"dog " * 80 + b"on the beach"}))
    losses = {}
    for length in ("auto", "75", "150", "225"):
        inputs = TrainConfig.of(STEPS | {"max_token_length": length, "caption_dropout": 0})
        result = Trainer(small_base(), tmp_path / length).run(upload, inputs)
        losses[length] = [loss for stage in result.stages.values() for loss in stage.losses]
        assert bool(result.dataset.report.used[0].warnings) == (length == "75")
    assert losses["auto"] == losses["150"] == losses["225"] != losses["75"]


def test_several_resolutions_and_random_crops_train_alike_every_time(tmp_path: Path) -> None:
    inputs = {"more_resolutions": "48", "random_crop": True, "train_batch_size": 2, "max_train_steps_tuning": 6}
    results = [train(tmp_path / name, **inputs) for name in ("a", "b")]
    assert results[0].path.read_bytes() == results[1].path.read_bytes()
    assert sorted({image.image.size for image in results[0].dataset.images}) == [(32, 32), (48, 48)]
    with raises(InputError, field="more_resolutions"):
        train(tmp_path / "c", more_resolutions="50")


def test_clip_skip_trains_on_that_layer_and_is_written_for_the_drawing(tmp_path: Path) -> None:
    files = [read_lora(train(tmp_path / str(skip), clip_skip=skip).path) for skip in (None, 1, 2)]
    assert [weights.metadata.get("ss_clip_skip") for weights in files] == [None, "1", "2"]
    assert [weights.clip_skip for weights in files] == [None, 1, 2]
    rows = [weights.embeddings["<s1>"]["text_encoder"] for weights in files]
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])
    with raises(InputError, field="clip_skip"):
        train(tmp_path, clip_skip=30)


def test_pictures_that_no_step_shows_are_warned_of(tmp_path: Path) -> None:
    lines: list[str] = []
    upload = picture_zip(tmp_path / "pictures.zip", ("red", "green", "blue", "black"))
    Trainer(small_base(), tmp_path / "job", log=lines.append).run(upload, TrainConfig.of(STEPS))
    assert any("show 2 of the 4 pictures" in line for line in lines)


def test_no_pictures_is_an_error_of_its_own(tmp_path: Path) -> None:
    empty = tmp_path / "not.zip"
    empty.write_bytes(b"nothing")
    with pytest.raises(PicturesError):
        Trainer(small_base(), tmp_path / "job").run(empty, TrainConfig.of(STEPS))


@pytest.mark.parametrize(
    ("inputs", "kind", "network"),
    [
        ({"lora_kind": "lokr", "optimizer": "prodigy", "lora_targets": "kohya+conv"}, "LoKr", "lycoris.kohya"),
        ({"lora_kind": "dora", "optimizer": "adamw_schedule_free", "lora_rank": 2}, "DoRA over LoRA", "lycoris.kohya"),
        ({"lora_kind": "rslora", "optimizer": "muon", "lora_plus_ratio": 4, "ema_decay": 0.5}, "LoRA", "networks.lora"),
    ],
)
def test_kinds_and_optimizers_go_through_a_whole_training(
    inputs: dict[str, Any], kind: str, network: str, tmp_path: Path
) -> None:
    base = small_base()
    before = hashes(base)
    weights = read_lora(train(tmp_path, base, continue_inversion=True, **inputs).path)
    assert {change.kind for _, _, change in weights} == {kind}
    assert weights.metadata["ss_network_module"] == network
    assert float(weights.metadata["ss_network_alpha"]) == pytest.approx(weights.alpha)
    assert hashes(base) == before
