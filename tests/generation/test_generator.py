"""Image generation on a tiny base: the same images as diffusers, and no trace of a LoRA after it."""

import inspect
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoPipelineForImage2Image, DDIMScheduler
from PIL import Image

from lora_service.errors import InputError, WrongBaseError
from lora_service.generation.generator import ImageGenerator
from lora_service.generation.image_files import GeneratedImage
from lora_service.generation.initial_image import InputImages
from lora_service.generation.request import GenerateRequest
from lora_service.generation.scheduler_classes import make_scheduler
from lora_service.generation.schedulers import SCHEDULERS
from lora_service.lora.scale import Scale
from lora_service.lora.weights import LoraLayer, LoraWeights
from lora_service.models.loading import load_base
from lora_service.settings import Settings
from tests.errors import raises
from tests.small_base import hashes, pipeline_of, small_base
from tests.small_models import FAMILIES

FULL = Scale(1.0, 1.0)


def request(**inputs: Any) -> GenerateRequest:
    return GenerateRequest.of({"prompt": "a photo of a dog", "seed": 3, "num_inference_steps": 2} | inputs)


def lora(generator: ImageGenerator, rank: int = 2) -> LoraWeights:
    """Make a LoRA with a token that changes one layer of the UNet and of the text encoder a lot."""
    rng = torch.Generator().manual_seed(7)
    layers = {}
    for component, suffix in (("unet", "attn2.to_k"), ("text_encoder", "q_proj")):
        modules = generator.base.components[component].named_modules()
        path, module = next((path, module) for path, module in modules if path.endswith(suffix))
        down = torch.randn(rank, module.in_features, generator=rng)
        up = torch.randn(module.out_features, rank, generator=rng)
        layers[component] = {path: LoraLayer(down=down, up=up, alpha=float(rank))}
    width = generator.base.text.encoders["text_encoder"].config.hidden_size
    embeddings = {"<s1>": {"text_encoder": torch.randn(width, generator=rng)}}
    return LoraWeights(layers=layers, embeddings=embeddings, metadata={"modelspec.trigger_phrase": "ohwx"})


def pixels(images: list[GeneratedImage]) -> list[bytes]:
    return [generated.image.tobytes() for generated in images]


@pytest.mark.parametrize(
    ("family", "prediction_type", "negative"),
    [("sd1", "epsilon", "cat"), ("sd2", "v_prediction", ""), ("sdxl", "epsilon", "cat"), ("sdxl", "v_prediction", "")],
)
def test_text2img_is_that_of_diffusers(family: str, prediction_type: str, negative: str) -> None:
    base = small_base(prediction_type, family)
    inputs = request(scheduler="DDIM", guidance_scale=4.0, negative_prompt=negative, width=40)
    ours = ImageGenerator(base).generate(inputs, [])
    pipeline = pipeline_of(base, DDIMScheduler, clip_sample=False, set_alpha_to_one=False)
    theirs = pipeline(
        "a photo of a dog",
        negative_prompt=negative or None,
        num_inference_steps=2,
        guidance_scale=4.0,
        width=40,
        height=32,
        generator=torch.Generator().manual_seed(3),
    ).images[0]
    assert pixels(ours) == [theirs.tobytes()]


@pytest.mark.parametrize("family", [*FAMILIES, "embedded"])
def test_img2img_is_that_of_diffusers(family: str) -> None:
    base = load_base(Settings(base_model="embedded")) if family == "embedded" else small_base(family=family)
    side = base.defaults.resolution
    initial = Image.effect_noise((side, side), 90).convert("RGB")
    inputs = request(scheduler="DDIM", guidance_scale=4.0, num_inference_steps=10, prompt_strength=0.5)
    ours = ImageGenerator(base).generate(inputs, [], images=InputImages(initial))
    plain = pipeline_of(base, DDIMScheduler, clip_sample=False, set_alpha_to_one=False)
    theirs = AutoPipelineForImage2Image.from_pipe(plain)(
        "a photo of a dog",
        image=initial,
        strength=0.5,
        num_inference_steps=10,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(3),
    ).images[0]
    assert pixels(ours) == [theirs.tobytes()]


def test_a_lora_changes_the_image_scale_0_does_not_and_nothing_stays() -> None:
    generator = ImageGenerator(small_base())
    before, weights = hashes(generator.base), lora(generator)
    bare = pixels(generator.generate(request(), []))
    full = pixels(generator.generate(request(), [(weights, FULL)]))
    half = pixels(generator.generate(request(), [(weights, Scale(0.5, 0.5))]))
    zero = pixels(generator.generate(request(), [(weights, Scale(0.0, 0.0))]))
    assert len({bare[0], full[0], half[0]}) == 3
    assert zero == bare
    assert pixels(generator.generate(request(), [])) == bare
    assert hashes(generator.base) == before


def test_scale_0_is_as_if_the_lora_were_not_there_in_the_prompt_either() -> None:
    generator = ImageGenerator(small_base())
    weights, inputs = lora(generator), request(prompt="a photo of <1> on the beach")
    assert pixels(generator.generate(inputs, [(weights, Scale(0.0, 0.0))])) == pixels(generator.generate(inputs, []))


def test_tokens_reach_the_prompt() -> None:
    generator = ImageGenerator(small_base())
    weights = lora(generator)
    images = generator.generate(request(prompt="a photo of <1>"), [(weights, FULL)])
    assert images[0].settings["prompt"] == "a photo of <s1>"
    assert pixels(images) == pixels(generator.generate(request(prompt="a photo of <s1>"), [(weights, FULL)]))


def test_an_interruption_leaves_the_bare_base() -> None:
    generator = ImageGenerator(small_base())
    before, weights = hashes(generator.base), lora(generator)

    def stop(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generator.generate(request(), [(weights, FULL)], log=stop)
    assert hashes(generator.base) == before


def test_a_lora_of_another_width_is_refused_and_leaves_the_bare_base() -> None:
    generator = ImageGenerator(small_base())
    before, weights = hashes(generator.base), lora(generator)
    path, layer = next(iter(weights.layers["unet"].items()))
    other = LoraLayer(down=torch.zeros(2, 1024), up=layer.up, alpha=2.0)  # type: ignore[attr-defined]
    with raises(WrongBaseError):
        generator.generate(request(), [(LoraWeights(layers={"unet": {path: other}}), FULL)])
    assert hashes(generator.base) == before


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("predicted", ["epsilon", "sample"])
def test_every_scheduler_is_reproducible_by_seed(scheduler: str, predicted: str) -> None:
    generator = ImageGenerator(small_base(predicted))
    first, again = (generator.generate(request(scheduler=scheduler, num_inference_steps=4), []) for _ in range(2))
    assert first[0].image.size == (32, 32)
    assert np.asarray(first[0].image).std() > 0
    assert pixels(again) == pixels(first)


def alpha_of(scheduler: Any, timestep: Any) -> Any:
    """Return the share of the latents' variance in what the UNet sees at a step."""
    if scheduler.init_noise_sigma == 1:
        return scheduler.alphas_cumprod[timestep]
    index = scheduler.step_index  # the noise levels of these may stand between two timesteps
    sigma = scheduler.sigmas[index]
    if hasattr(scheduler, "sigmas_interpol") and not scheduler.state_in_first_order:
        ancestral = "Ancestral" in type(scheduler).__name__
        sigma = scheduler.sigmas_interpol[index - 1 if ancestral else index]
    return 1 / (1 + sigma**2)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_samples_the_same_from_predicted_noise_and_predicted_latents(name: str) -> None:
    samples = []
    for prediction_type in ("epsilon", "sample"):
        scheduler = make_scheduler(name, small_base(prediction_type).scheduler_config)
        scheduler.set_timesteps(5)
        rng = torch.Generator().manual_seed(0)
        x = torch.randn(1, 4, 4, 4, generator=rng) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            noisy = scheduler.scale_model_input(x, t)
            alpha = alpha_of(scheduler, t)
            latents = torch.tanh(noisy)
            noise = (noisy - alpha.sqrt() * latents) / (1 - alpha).sqrt()
            kwargs = {"generator": rng} if "generator" in inspect.signature(scheduler.step).parameters else {}
            x = scheduler.step(latents if prediction_type == "sample" else noise, t, x, **kwargs).prev_sample
        samples.append(x)
    torch.testing.assert_close(samples[1], samples[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("predicted", ["epsilon", "sample"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_run_that_starts_in_the_middle_ends_at_what_a_perfect_unet_sees(name: str, predicted: str) -> None:
    """The loop of diffusers' img2img pipelines, with a UNet that knows the latents behind the noise."""
    rng = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 4, 4, generator=rng)
    for steps, skipped in ((2, 0), (2, 1), (8, 0), (8, 1), (8, 3), (8, 6), (8, 7)):
        scheduler = make_scheduler(name, small_base(predicted).scheduler_config, img2img=True)
        scheduler.set_timesteps(steps)
        timesteps = scheduler.timesteps[skipped * scheduler.order :]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(skipped * scheduler.order)
        x = scheduler.add_noise(latents, torch.randn(latents.shape, generator=rng), timesteps[:1])
        for t in timesteps:
            noisy = scheduler.scale_model_input(x, t)
            alpha = alpha_of(scheduler, t)
            noise = (noisy - alpha.sqrt() * latents) / (1 - alpha).sqrt()
            kwargs = {"generator": rng} if "generator" in inspect.signature(scheduler.step).parameters else {}
            x = scheduler.step(latents if predicted == "sample" else noise, t, x, **kwargs).prev_sample
        error = (x - latents).square().mean().sqrt()
        assert error < 0.1, f"{skipped} of {steps} steps left out: {error}"


def test_prompt_strength_1_ignores_the_initial_image() -> None:
    generator = ImageGenerator(small_base())
    drawn = [
        generator.generate(request(prompt_strength=1), [], images=InputImages(Image.new("RGB", (32, 32), color)))
        for color in ("white", "black")
    ]
    assert pixels(drawn[0]) == pixels(drawn[1]) == pixels(generator.generate(request(), []))
    assert drawn[0][0].settings["prompt_strength"] == 1


def test_references_and_words_of_several_rows_work_in_both_prompts() -> None:
    generator = ImageGenerator(small_base())
    width = generator.base.text.encoders["text_encoder"].config.hidden_size
    rows = {name: {"text_encoder": torch.randn(width)} for name in ("ugly", "ugly_1", "ugly_2")}
    loras = [(LoraWeights({}, rows), FULL)]
    by_reference, by_word, by_rows, by_first_alone = (
        pixels(generator.generate(request(negative_prompt=negative, guidance_scale=5), loras))
        for negative in ("<1>", "ugly", "ugly ugly_1 ugly_2", "ugly ugly_1")
    )
    assert by_reference == by_word == by_rows != by_first_alone
    positive, spelled = (
        pixels(generator.generate(request(prompt=prompt), loras)) for prompt in ("an ugly,", "an ugly ugly_1 ugly_2,")
    )
    assert positive == spelled


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_both_prompts_are_warned_about_when_they_are_cut_off(name: str) -> None:
    lines: list[str] = []
    ImageGenerator(small_base()).generate(request(**{name: "dog " * 300}), [], log=lines.append)
    assert any(line.startswith(f"warning: the {name.replace('_', ' ')} has") for line in lines)


IGNORING_ZERO_SNR = (
    "PNDM", "KLMS", "DPMSolverSinglestep", "DPMSolverSinglestepSDE", "KDPM2", "KDPM2Ancestral", "Heun",
)  # fmt: skip


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_scheduler_keeps_zero_terminal_snr_or_is_refused(scheduler: str) -> None:
    base = small_base("v_prediction")
    plain = make_scheduler(scheduler, base.scheduler_config)
    # diffusers would not pass on the keys that it lists as left at their defaults.
    base.scheduler_config = {k: v for k, v in base.scheduler_config.items() if k != "_use_default_values"}
    base.scheduler_config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    if scheduler in IGNORING_ZERO_SNR:  # diffusers' classes of these ignore it
        with raises(InputError, code="unsupported_noise_schedule", field="scheduler") as caught:
            ImageGenerator(base).generate(request(scheduler=scheduler), [])
        supported = [name for name in SCHEDULERS if name not in IGNORING_ZERO_SNR]
        assert ", ".join(supported) in caught.value.expected
    else:
        assert make_scheduler(scheduler, base.scheduler_config).alphas_cumprod[-1] < plain.alphas_cumprod[-1] / 10
        ImageGenerator(base).generate(request(scheduler=scheduler), [])


def test_an_initial_image_decides_the_size_and_is_kept_at_low_strength() -> None:
    generator, initial = ImageGenerator(small_base()), InputImages(Image.new("RGB", (96, 64), "white"))
    near, far = (
        generator.generate(request(prompt_strength=s, num_inference_steps=10), [], images=initial)[0].image
        for s in (0.1, 1.0)
    )
    assert near.size == far.size == (48, 32)
    assert near.tobytes() != far.tobytes()


def test_prompts_and_negative_prompts_that_are_cut_are_warned_of() -> None:
    lines: list[str] = []
    inputs = request(prompt="dog " * 290, negative_prompt="dog " * 280)
    ImageGenerator(small_base()).generate(inputs, [], log=lines.append)
    assert "warning: the prompt has 290 tokens and only the first 225 are used" in lines
    assert "warning: the negative prompt has 280 tokens and only the first 225 are used" in lines


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("long", ["prompt", "negative_prompt"])
def test_long_prompts_are_drawn_as_diffusers_draws_the_pieces(family: str, long: str) -> None:
    """Both prompts get as many chunks as the longer one; the shorter's second one is that of an empty text."""
    base = small_base(family=family)
    pieces = {"prompt": ["a photo of a dog"], "negative_prompt": ["cat"]} | {long: ["dog on the " * 25, "the cat"]}
    lines: list[str] = []
    ours = ImageGenerator(base).generate(
        request(scheduler="DDIM", guidance_scale=4.0, **{name: " ".join(text) for name, text in pieces.items()}),
        [],
        log=lines.append,
    )
    assert not any("warning" in line for line in lines)
    pipeline = pipeline_of(base, DDIMScheduler, clip_sample=False, set_alpha_to_one=False)
    embeds = {}
    for name, texts in pieces.items():
        encoded = [
            # "" itself would be zeros for an XL; as a rest it is not.
            pipeline.encode_prompt(text, device=base.device, num_images_per_prompt=1, do_classifier_free_guidance=False)
            for text in [*texts, ""][:2]
        ]
        prefix = name.removesuffix("prompt")
        embeds[f"{prefix}prompt_embeds"] = torch.cat([parts[0] for parts in encoded], dim=1)
        if family == "sdxl":
            embeds[f"{prefix}pooled_prompt_embeds"] = encoded[0][2]
    theirs = pipeline(
        num_inference_steps=2, guidance_scale=4.0, width=32, height=32,
        generator=torch.Generator().manual_seed(3), **embeds,
    ).images[0]  # fmt: skip
    difference = np.abs(np.asarray(theirs, int) - np.asarray(ours[0].image, int)).max()
    assert difference <= 1
    assert pixels(ours) != pixels(ImageGenerator(base).generate(
        request(scheduler="DDIM", guidance_scale=4.0, **{name: text[0] for name, text in pieces.items()}), []
    ))  # fmt: skip


def test_clip_skip_is_the_requests_else_that_of_its_loras() -> None:
    generator = ImageGenerator(small_base())
    plain = lora(generator)
    trained, other, broken = (replace(plain, metadata={"ss_clip_skip": text}) for text in ("2", "1", "None"))

    def drawn(*loras: LoraWeights, scale: Scale = FULL, **inputs: Any) -> tuple[list[bytes], str]:
        lines: list[str] = []
        images = generator.generate(request(**inputs), [(each, scale) for each in loras], log=lines.append)
        assert (images[0].settings.get("clip_skip") is None) == (drawn_with_own(lines) and "clip_skip" not in inputs)
        return pixels(images), "\n".join(lines)

    def drawn_with_own(lines: list[str]) -> bool:
        return not any(line.startswith("clip_skip") for line in lines)

    own, skipped = drawn(plain)[0], drawn(plain, clip_skip=2)[0]
    assert own != skipped
    assert drawn(plain, clip_skip=1)[0] == own
    pictures, lines = drawn(trained)
    assert pictures == skipped
    assert "clip_skip 2, as the LoRA was trained with it" in lines
    assert drawn(trained, clip_skip=1)[0] == own
    assert drawn(other)[0] == drawn(broken)[0] == own
    assert "warning: the LoRAs were trained with clip_skip 2, 1;" in drawn(trained, plain)[1]
    assert drawn(trained, scale=Scale(0, 0))[0] == drawn()[0]


def test_an_xl_takes_clip_skip_from_our_own_loras_only() -> None:
    """kohya's trainer writes what was asked for, and reads the penultimate layer all the same."""
    generator = ImageGenerator(small_base(family="sdxl"))
    ours, kohyas = (
        LoraWeights({}, lora(generator).embeddings, {"ss_clip_skip": "1"} | more)
        for more in ({"lora_service.version": "1"}, {})
    )
    plain, own, foreign = (
        pixels(generator.generate(request(), [(weights, FULL)]))
        for weights in (replace(ours, metadata={}), ours, kohyas)
    )
    assert plain == foreign != own
