"""Single-file checkpoints: their family is detected, and they load with their own weights, without a network."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.random_models import bare_text_encoder, bare_unet, bare_vae
from lora_service.errors import BaseModelError
from lora_service.generation.generator import ImageGenerator
from lora_service.generation.request import GenerateRequest
from lora_service.generation.scheduler_classes import make_scheduler
from lora_service.models import single_file
from lora_service.models.families.sd1 import SD1
from lora_service.models.families.sd2 import SD2
from lora_service.models.families.sdxl import SDXL
from lora_service.models.families.stable_diffusion import StableDiffusion
from lora_service.models.loading import load_base
from lora_service.models.single_file import CONFIGS, detect_family, scheduler_config
from lora_service.settings import Settings
from tests import original_layout
from tests.errors import raises
from tests.small_base import pipeline_of, small_base, small_components
from tests.small_models import FAMILIES

FOLDERS = {"sd1": "sd15", "sd2": "sd21", "sdxl": "sdxl"}
SMALL_WIDTHS = {"sd1": 32, "sd2": 32, "sdxl": 80}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write a small checkpoint of a family with a tokenizer beside it, after teaching the loader the small families."""

    def written(family: str, *, tokenizer: bool = True, **more: Any) -> Path:
        pipeline = pipeline_of(small_base(family=family))
        configs = tmp_path / "configs" / FOLDERS[family]
        pipeline.save_config(configs)
        for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
            if (model := getattr(pipeline, name, None)) is not None:
                (model.config if hasattr(model.config, "save_pretrained") else model).save_pretrained(configs / name)
        scheduler = CONFIGS / FOLDERS[family] / "scheduler" / "scheduler_config.json"
        (configs / "scheduler").mkdir()
        (configs / "scheduler" / scheduler.name).write_text(scheduler.read_text())
        published = next(f for f in (SD1, SD2, SDXL) if f.name == family)
        monkeypatch.setattr(single_file, "CONFIGS", tmp_path / "configs")
        monkeypatch.setattr(single_file, "_BY_TEXT_WIDTH", {SMALL_WIDTHS[family]: published})
        if tokenizer:
            pipeline.tokenizer.save_pretrained(tmp_path / "tokenizer")
        path = tmp_path / "model.safetensors"
        tensors = original_layout.checkpoint(small_components(family=family), family)
        save_file({k: t.contiguous() for k, t in tensors.items()} | more.pop("tensors", {}), path, **more)
        return path

    return written


@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_file_generates_the_images_of_its_models(family: str, write: Any) -> None:
    loaded, original = load_base(Settings(base_model=str(write(family)))), small_base(family=family)
    assert loaded.family.name == family
    for name, model in {**original.components, "vae": original.vae}.items():
        state = (loaded.vae if name == "vae" else loaded.components[name]).state_dict()
        for key, value in model.state_dict().items():
            assert torch.equal(state[key], value), (name, key)
    loaded.scheduler_config = original.scheduler_config
    loaded.text = loaded.text.with_tokenizers(
        original.tokenizers
    )  # the small vocabulary has no "!" with the id 0 to pad with
    inputs = {"prompt": "a dog", "seed": 1, "num_inference_steps": 2, "guidance_scale": 4.0, "width": 32, "height": 32}
    request = GenerateRequest.of(inputs)
    images = [ImageGenerator(base).generate(request, [])[0].image.tobytes() for base in (loaded, original)]
    assert images[0] == images[1]


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_an_inpainting_checkpoint_has_a_unet_of_9_channels(family: str, write: Any) -> None:
    conv_in = torch.randn(32, 9, 3, 3)
    path = write(family, tensors={"model.diffusion_model.input_blocks.0.0.weight": conv_in})
    base = load_base(Settings(base_model=str(path)))
    assert base.is_inpainting
    assert torch.equal(base.unet.conv_in.weight, conv_in)


@pytest.mark.parametrize(
    ("family", "more", "expected"),
    [
        ("sd1", {}, "epsilon"),
        ("sd2", {}, "v_prediction"),
        ("sd2", {"metadata": {"modelspec.architecture": "stable-diffusion-v2-512"}}, "epsilon"),
        ("sdxl", {}, "epsilon"),
        ("sdxl", {"tensors": {"v_pred": torch.tensor([])}}, "v_prediction"),
        ("sdxl", {"metadata": {"modelspec.prediction_type": "v"}}, "v_prediction"),
    ],
)
def test_the_prediction_type_is_the_files_own_or_its_familys(
    family: str, more: dict[str, Any], expected: str, write: Any
) -> None:
    assert load_base(Settings(base_model=str(write(family, **more)))).prediction_type == expected


def test_zero_terminal_snr_is_recognized_by_its_mark() -> None:
    config = scheduler_config(CONFIGS / "sdxl", {"v_pred": (0,), "ztsnr": (0,)}, {})
    assert config["prediction_type"] == "v_prediction"
    scheduler = make_scheduler("DDIM", config)
    scheduler.set_timesteps(30)
    assert scheduler.timesteps[0] == 999
    assert scheduler.alphas_cumprod[999] == 0


def test_defaults_beside_the_file_decide_the_prediction_type(write: Any) -> None:
    path = write("sd2")
    path.with_name("model.base.json").write_text(json.dumps({"title": "mine", "prediction_type": "epsilon"}))
    base = load_base(Settings(base_model=str(path)))
    assert (base.prediction_type, base.defaults.title) == ("epsilon", "mine")


def test_a_missing_tokenizer_is_reported(write: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(single_file.CLIPTokenizer, "from_pretrained", _offline)
    path = write("sd1", tokenizer=False)
    with raises(BaseModelError, code="missing_tokenizer", field="BASE_MODEL") as caught:
        load_base(Settings(base_model=str(path), model_cache=tmp_path / "cache"))
    assert "vocab.json and merges.txt" in str(caught.value)


def _offline(*arguments: Any, **options: Any) -> None:
    raise OSError("no network")


def test_a_file_that_lacks_weights_is_refused(write: Any) -> None:
    from safetensors.torch import load_file

    path = write("sd1")
    tensors = {k: t for k, t in load_file(path).items() if "layers.1.self_attn.q_proj" not in k}
    save_file(tensors, path)
    with raises(BaseModelError, code="incomplete_model") as caught:
        load_base(Settings(base_model=str(path)))
    assert "text_encoder.encoder.layers.1.self_attn.q_proj" in str(caught.value)


def full_size_shapes(family: str) -> dict[str, tuple[int, ...]]:
    return {key: tuple(t.shape) for key, t in original_layout.unet(bare_unet(family).state_dict()).items()}


@pytest.mark.parametrize(("folder", "family"), [("sd15", SD1), ("sd21", SD2), ("sdxl", SDXL)])
def test_families_are_detected_by_their_shapes(folder: str, family: StableDiffusion) -> None:
    assert detect_family("any", full_size_shapes(folder)) is family


@pytest.mark.parametrize(
    ("shapes", "model"),
    [
        ({"model.diffusion_model.input_blocks.0.0.weight": (320, 6, 3, 3)}, "no known kind (6 input channels)"),
        ({"model.diffusion_model.input_blocks.0.0.weight": (320, 8, 3, 3)}, "pix2pix"),
        ({"model.diffusion_model.input_blocks.0.0.weight": (320, 5, 3, 3)}, "depth-to-image"),
        ({"model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (8, 1280)}, "refiner"),
        ({"model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (8, 77)}, "77 wide"),
    ],
)
def test_similar_models_are_refused_by_name(shapes: dict[str, tuple[int, ...]], model: str) -> None:
    base = {
        "model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3),
        "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
    }
    with raises(BaseModelError, code="unsupported_model") as caught:
        detect_family("any", base | shapes)
    assert model in str(caught.value)


@pytest.mark.parametrize(
    ("key", "model"),
    [
        ("lora_unet_down_blocks_0.lora_down.weight", "a LoRA"),
        ("model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight", "a Stable Diffusion 3"),
        ("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "a Flux"),
        ("down_blocks.0.resnets.0.conv1.weight", "a UNet alone"),
        ("decoder.conv_in.weight", "a VAE alone"),
        ("something.else", "no Stable Diffusion"),
    ],
)
def test_other_files_are_refused_by_name(key: str, model: str, tmp_path: Path) -> None:
    save_file({key: torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with raises(BaseModelError, code="unsupported_model") as caught:
        load_base(Settings(base_model=str(tmp_path / "other.safetensors")))
    assert model in str(caught.value)


@pytest.mark.parametrize(("name", "code"), [("a.ckpt", "not_safetensors"), ("a.safetensors", "unreadable_model")])
def test_unreadable_files_are_refused(name: str, code: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"no tensors here")
    with raises(BaseModelError, code=code):
        load_base(Settings(base_model=str(tmp_path / name)))


@pytest.mark.parametrize(
    ("family", "model_name", "count"),
    [
        # The published models' counts.
        ("sd15", "unet", 859_520_964),
        ("sd21", "unet", 865_910_724),
        ("sdxl", "unet", 2_567_463_684),
        ("sd15", "vae", 83_653_863),
        ("sdxl", "vae", 83_653_863),
        ("sd15", "text_encoder", 123_060_480),
        ("sd21", "text_encoder", 340_387_840),
        ("sdxl", "text_encoder", 123_060_480),
        ("sdxl", "text_encoder_2", 694_659_840),
    ],
)
def test_the_configurations_are_those_of_the_published_models(family: str, model_name: str, count: int) -> None:
    model = {"unet": bare_unet, "vae": bare_vae}.get(model_name, lambda name: bare_text_encoder(name, model_name))(
        family
    )
    assert sum(parameter.numel() for parameter in model.parameters()) == count
