"""The losses that keep the subject's class: what they compute, what they leave alone, and what reaches them."""

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_service.errors import InputError
from lora_service.lora.files import read_lora
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.families.sd1 import SD1
from lora_service.settings import Settings
from lora_service.training.adapters.lora_layers import LayerOptions, LearnedLayer, lora_layers
from lora_service.training.adapters.lora_targets import targets_in
from lora_service.training.callbacks.training_progress import TrainingProgress
from lora_service.training.context import TrainingContext
from lora_service.training.data.latent_cache import cache_latents
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.inputs.input_checks import ORIGINAL_TARGETS
from lora_service.training.inputs.input_warnings import warn_of_inputs
from lora_service.training.inputs.resolved_config import ResolvedConfig, resolve_config
from lora_service.training.losses.batch_loss import BatchLoss, BatchSource
from lora_service.training.losses.denoising_loss import DenoisingLoss
from lora_service.training.losses.loss import masked_loss
from lora_service.training.losses.preservation import (
    ClassCaptions,
    ClassCaptionSampler,
    OutputLoss,
    PriorLoss,
    without_lora_layers,
)
from lora_service.training.memory.estimate import estimate
from lora_service.training.trainer import Trainer, TrainResult
from tests.dataset.picture_makers import png, zipped
from tests.errors import raises
from tests.small_base import DEFAULTS, hashes, picture, picture_zip, small_base

STEPS = {"task": "object", "seed": 1, "max_train_steps_ti": 1, "max_train_steps_tuning": 2, "resolution": 32}
PRIOR = STEPS | {"preservation": "prior", "class_word": "dog"}
OUTPUT = STEPS | {"preservation": "output", "class_word": "dog"}


CONFIG = TrainConfig(class_word="dog", seed=1)


def resolved(**inputs: Any) -> ResolvedConfig:
    return resolve_config(TrainConfig.of(STEPS | inputs), DEFAULTS, "zwx", 1)


def source(base: DiffusionBase, colors: tuple[str, ...], sides: tuple[int, ...] = (32,)) -> BatchSource:
    """Batches of two pictures, captioned "a photo of dog", whose noise comes from a generator of seed 3."""
    settings = resolved(class_word="dog", train_batch_size=2)
    images = tuple(picture(color, size=(32, side)) for color in colors for side in sides)
    latents = cache_latents(images, base, flip=False, color_jitter=False, seed=1)
    context = TrainingContext(base, images, latents, settings, base.text, autocast=None)
    plan = context.plan("tuning", ((("zwx", 1.0),),), 0.0)
    return BatchSource(latents, plan, plan.token_ids, DenoisingLoss(base, settings), torch.Generator().manual_seed(3))


def prior_loss(subject: BatchSource, of_class: BatchSource, weight: float) -> Callable[[int], BatchLoss]:
    """Return the loss of micro-batch ``i``."""
    loss = PriorLoss(subject.denoising, subject.denoising.base.text, weight)
    return lambda i: loss((subject.sample(i), of_class.sample(i)))


def output_loss(subject: BatchSource, captions: ClassCaptions, weight: float) -> Callable[[int], BatchLoss]:
    """Return the loss of micro-batch ``i``."""
    base = subject.denoising.base
    loss = OutputLoss(subject.denoising, base.text, base.components, weight)
    return lambda i: loss((subject.sample(i), captions(i, slice(None))))


def unet_layers(base: DiffusionBase) -> AbstractContextManager[Mapping[str, LearnedLayer]]:
    """Let the usual layers of the UNet learn, with rank 2."""
    targets = targets_in("unet", base.unet, ORIGINAL_TARGETS, SD1)
    return lora_layers(base.unet, targets, LayerOptions(2, 2.0), torch.Generator().manual_seed(0))


def train(folder: Path, class_data: Path | None = None, pictures: bytes | None = None, **inputs: Any) -> TrainResult:
    folder.mkdir(exist_ok=True)
    upload = picture_zip(folder / "pictures.zip")
    if pictures is not None:
        upload.write_bytes(pictures)
    settings = Settings(class_image_cache=folder / "cache")
    trainer = Trainer(small_base(), folder / "job", settings=settings)
    return trainer.run(upload, TrainConfig.of(inputs), class_data=class_data)


def test_the_loss_of_prior_is_the_weighted_sum_of_both_in_one_forward_pass() -> None:
    base = small_base()
    subject, of_class = source(base, ("red", "blue")), source(base, ("green", "black"))
    of_class = replace(of_class, generator=subject.generator)
    passes = []
    with base.unet.register_forward_pre_hook(lambda module, arguments: passes.append(len(arguments[0]))):
        loss = prior_loss(subject, of_class, weight=0.25)(1)
    assert passes == [4]
    subject.generator.manual_seed(3)
    batches = [subject.sample(1), of_class.sample(1)]
    one, other = (
        masked_loss(
            base.denoise(b.noisy.noisy, b.noisy.timesteps, b.embeds(base.text)), b.noisy.target, b.noisy.weights, b.mask
        )
        for b in batches
    )
    torch.testing.assert_close(loss.total, one + 0.25 * other)
    torch.testing.assert_close(loss.parts, {"instance": one, "class": other})


def test_pictures_of_other_shapes_get_a_pass_of_their_own() -> None:
    base = small_base()
    subject, of_class = source(base, ("red", "blue")), source(base, ("green", "black"), sides=(64,))
    passes = []
    with base.unet.register_forward_pre_hook(lambda module, arguments: passes.append(tuple(arguments[0].shape[2:]))):
        prior_loss(subject, of_class, weight=1.0)(0)
    assert passes == [(8, 8), (16, 8)]


def test_the_loss_of_output_is_0_at_the_start_and_grows_with_what_the_layers_change() -> None:
    base = small_base()
    subject = source(base, ("red", "blue"))
    captions = ClassCaptions(
        subject, (picture("red"), picture("blue")), TrainConfig(class_word="dog", seed=1), base.text
    )
    loss = output_loss(subject, captions, weight=2.0)
    with unet_layers(base) as layers:
        start = loss(0)
        assert start.parts["class"] < 1e-10  # a larger batch rounds otherwise
        torch.testing.assert_close(start.total, start.parts["instance"])
        for layer in layers.values():
            torch.nn.init.normal_(layer.ups[0], generator=torch.Generator().manual_seed(1))
        changed = loss(1)
        changed.total.backward()
        assert changed.parts["class"] > 0
        torch.testing.assert_close(changed.total, changed.parts["instance"] + 2 * changed.parts["class"])
        assert all(layer.ups[0].grad is not None for layer in layers.values())


def test_the_target_of_output_is_what_the_base_predicts_under_the_class_word() -> None:
    base = small_base()
    subject = source(base, ("red", "blue"))
    captions = ClassCaptions(
        subject, (picture("red"), picture("blue")), TrainConfig(class_word="dog", seed=1), base.text
    )
    loss = output_loss(subject, captions, weight=1.0)
    text = base.text.encode(base.text.tokenize(["a photo of dog"] * 2))
    noisy = subject.sample(0).noisy
    subject.generator.manual_seed(3)
    with torch.no_grad():
        expected = base.denoise(noisy.noisy, noisy.timesteps, text)
    with unet_layers(base) as layers:
        for layer in layers.values():
            torch.nn.init.normal_(layer.ups[0], generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            error = (base.denoise(noisy.noisy, noisy.timesteps, text) - expected).square().mean(dim=(1, 2, 3))
        torch.testing.assert_close(loss(0).parts["class"].detach(), (noisy.weights * error).mean())


def test_layers_are_off_within_the_context_only_and_learn_again_after_it() -> None:
    base = small_base()
    x, t, text = torch.randn(1, 4, 8, 8), torch.tensor([10]), base.text.encode(base.text.tokenize(["a dog"]))
    bare = base.denoise(x, t, text)
    with unet_layers(base) as layers:
        for layer in layers.values():
            torch.nn.init.normal_(layer.ups[0])
        with without_lora_layers(base.components):
            assert torch.equal(base.denoise(x, t, text), bare)
        assert not torch.allclose(base.denoise(x, t, text), bare)
        assert all(p.requires_grad for layer in layers.values() for p in layer.parameters.values())


def test_captions_of_the_class_are_the_pictures_own_and_the_same_at_every_call() -> None:
    base = small_base()
    images = tuple(replace(picture(color), captions=(f"a {color} {{}}",)) for color in ("red", "blue"))
    subject = source(base, ("red", "blue"))
    captions = ClassCaptions(subject, images, CONFIG, base.text)
    for i in range(4):
        order = [("red", "blue")[subject.latents[0].images[m]] for m in subject.plan[i].images.tolist()]
        expected = base.text.tokenize([f"a {color} dog" for color in order]).by_encoder["text_encoder"]
        assert torch.equal(captions(i, slice(None)).by_encoder["text_encoder"], expected)
        assert torch.equal(captions(i, slice(None)).by_encoder["text_encoder"], expected)


def test_a_class_picture_is_captioned_by_its_file_or_the_prompt_without_a_subject() -> None:
    import random

    sampler = ClassCaptionSampler("dog")
    window = sampler.window(small_base().text)
    image = replace(picture("red"), captions=("{}, a dog on grass", "{}", "my {} here"))
    sampled = {sampler.sample(image, random.Random(i), window) for i in range(20)}
    assert sampled == {"a dog on grass", "dog", "my dog here"}


@pytest.mark.parametrize("inputs", [PRIOR | {"num_class_images": 2}, OUTPUT], ids=["prior", "output"])
def test_a_training_logs_both_parts_and_leaves_the_base_as_it_was(tmp_path: Path, inputs: dict[str, Any]) -> None:
    base, reports = small_base(), list[TrainingProgress]()
    before = hashes(base)
    trainer = Trainer(base, tmp_path / "job", reports.append, settings=Settings(class_image_cache=tmp_path / "cache"))
    result = trainer.run(picture_zip(tmp_path / "pictures.zip"), TrainConfig.of(inputs | {"samples": 0}))
    assert hashes(base) == before
    assert not any(p.requires_grad for part in base.components.values() for p in part.parameters())
    assert set(result.stages["stage 2"].parts) == {"instance", "class"}
    assert "parts" not in result.stages["stage 1"].parts
    assert "(instance " in reports[-1].summary()
    assert {"loss_instance", "loss_class"} <= set(reports[-1].metrics())
    assert set(json.loads(read_lora(result.path).metadata["lora_service.report"])["loss_parts"]) == {"stage 2"}
    assert sorted(path.name for path in (tmp_path / "job").iterdir()) == ["lora.safetensors", "run.json"]


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
@pytest.mark.parametrize("inputs", [PRIOR | {"num_class_images": 1}, OUTPUT], ids=["prior", "output"])
def test_other_families_are_preserved_too(tmp_path: Path, family: str, inputs: dict[str, Any]) -> None:
    base = small_base(family=family)
    settings = Settings(class_image_cache=tmp_path / "cache")
    more = {"gradient_checkpointing": "on", "aspect_ratio_buckets": False, "learning_rate_text": 0}
    trainer = Trainer(base, tmp_path / "job", settings=settings)
    result = trainer.run(picture_zip(tmp_path / "pictures.zip"), TrainConfig.of(inputs | more))
    assert result.stages["stage 2"].steps == 2


def test_each_choice_teaches_something_else_and_the_same_seed_the_same(tmp_path: Path) -> None:
    choices = {"none": STEPS | {"class_word": "dog"}, "prior": PRIOR | {"num_class_images": 2}, "output": OUTPUT}
    learned = {
        f"{name} {i}": train(tmp_path / f"{name}{i}", **inputs).path.read_bytes()
        for name, inputs in choices.items()
        for i in range(2)
    }
    assert len(set(learned.values())) == 3
    assert all(learned[f"{name} 0"] == learned[f"{name} 1"] for name in choices)


def test_class_pictures_come_from_the_zip_else_from_the_folder_reg(tmp_path: Path) -> None:
    class_data = tmp_path / "class.zip"
    class_data.write_bytes(zipped({"c.png": png(3), "c.txt": b"a dog on grass", "broken.png": b"no"}))
    pictures = zipped({"5_zwx dog/a.png": png(1), "reg/1_dog/b.png": png(2), "reg/1_dog/b.txt": b"a brown dog"})
    for given, own in ((class_data, "class_data"), (None, "reg")):
        lines: list[str] = []
        trainer = Trainer(small_base(), tmp_path / own, log=lines.append)
        upload = tmp_path / f"{own}.zip"
        upload.write_bytes(pictures)
        result = trainer.run(upload, TrainConfig.of(PRIOR), class_data=given)
        assert any(line.startswith("class pictures: 1 at 32 × 32; captions: file 1; masks: none 1") for line in lines)
        assert result.dataset.report.counts()["left_out"] == 0
        assert [image.name for image in result.dataset.images] == ["5_zwx dog/a.png"]
        assert any("broken.png" in line for line in lines) == (given is not None)


def test_an_unusable_zip_of_class_pictures_is_blamed_on_its_input(tmp_path: Path) -> None:
    from lora_service.errors import PicturesError

    class_data = tmp_path / "class.zip"
    class_data.write_bytes(zipped({"broken.png": b"no"}))
    with raises(PicturesError, field="class_data"):
        train(tmp_path / "a", class_data, **PRIOR)


@pytest.mark.parametrize(
    ("inputs", "field", "code"),
    [
        ({"preservation": "output"}, "class_word", "class_word_needed"),
        ({"preservation": "output", "task": "style"}, "class_word", "class_word_needed"),
        ({"preservation": "prior"}, "class_word", "class_word_needed"),
        ({"preservation": "output", "class_word": "dog", "trigger": "Dog"}, "class_word", "preserves_the_subject"),
        (
            {"preservation": "prior", "class_word": "dog", "class_prompt": "a zwx dog", "trigger": "zwx"},
            "class_prompt",
            "preserves_the_subject",
        ),
        ({"preservation": "prior", "class_word": "dog", "class_prompt": "a dog|"}, "class_prompt", "invalid_input"),
        ({"preservation": "prior", "class_word": "dog", "class_prompt": "a {}"}, "class_prompt", "invalid_input"),
        ({"preservation_weight": 0}, "preservation_weight", "invalid_input"),
    ],
)
def test_what_cannot_be_preserved_is_refused(inputs: dict[str, Any], field: str, code: str) -> None:
    with raises(InputError, field=field, code=code):
        TrainConfig.of(STEPS | inputs)


@pytest.mark.parametrize(
    "more", [{}, {"preservation": "output"}, {"preservation": "prior", "max_train_steps_tuning": 0}]
)
def test_class_pictures_that_nothing_would_use_are_refused(tmp_path: Path, more: dict[str, Any]) -> None:
    with raises(InputError, field="class_data", code="unused_class_data"):
        train(tmp_path / "a", picture_zip(tmp_path / "class.zip"), **STEPS | {"class_word": "dog"} | more)


def test_inputs_without_effect_are_warned_of(tmp_path: Path) -> None:
    report = train(tmp_path / "a", **STEPS).dataset.report

    def warnings(**inputs: Any) -> str:
        return "\n".join(warn_of_inputs(TrainConfig.of(STEPS | {"class_word": "dog"} | inputs), report))

    given = {"class_prompt": "a dog", "num_class_images": 3, "preservation_weight": 2.0}
    assert "preservation_weight, class_prompt, num_class_images have no effect, as preservation is none" in warnings(
        **given
    )
    assert "class_prompt, num_class_images have no effect" in warnings(preservation="output", **given)
    assert not warnings(preservation="prior", **given)
    assert "preservation has no effect" in warnings(preservation="output", max_train_steps_tuning=0)


def test_the_default_prompt_is_the_class_or_for_styles_any_picture() -> None:
    def prompts(**inputs: Any) -> tuple[str, ...]:
        return resolved(preservation="prior", **inputs).class_prompts

    assert prompts(class_word="dog") == ("a photo of a dog",)
    assert prompts(task="style") == ("a picture",)
    assert prompts(task="style", class_word="painting") == ("a painting",)
    assert prompts(class_prompt="a dog | a cat") == ("a dog", "a cat")


def test_the_class_takes_the_memory_of_a_second_batch() -> None:
    base = small_base()
    plain, preserved = (
        estimate(base, resolved(class_word="dog", preservation=choice).config, checkpointing=False)
        for choice in ("none", "output")
    )
    assert preserved.step == pytest.approx(2 * plain.step, abs=1)
