"""ControlNets and T2I-Adapters from folders and the hub, and those that do not fit."""

import json
from pathlib import Path

import pytest
import torch

from lora_service.errors import AdapterError, InputError, SettingError
from lora_service.models.control_loading import ControlModels, family_of, load_adapter
from lora_service.models.control_registry import find_adapter
from lora_service.settings import Settings
from tests.errors import raises
from tests.generation.control.small_adapters import saved, small_controlnet, small_t2i_adapter
from tests.models.fake_hub import FakeHub
from tests.small_base import small_base


def test_the_setting_wins_over_the_known_ones_and_adds_to_them() -> None:
    settings = Settings(adapters="canny=/models/my canny, new|seg=owner/name@v1")  # type: ignore[arg-type]
    assert find_adapter("canny", "sd1", settings) == "/models/my canny, new"
    assert find_adapter("seg", "sdxl", settings) == "owner/name@v1"
    assert find_adapter("sketch", "sd1", settings) == "TencentARC/t2iadapter_sketch_sd15v2"
    with raises(InputError, field="adapter_type", code="no_adapter"):
        find_adapter("keypose", "sdxl", settings)
    for wrong in ("sketch", "sketch=", "other=/a"):
        with raises(SettingError, field="ADAPTERS"):
            find_adapter("sketch", "sd1", Settings(adapters=(wrong,)))


def test_the_last_adapter_is_kept_and_another_takes_its_place(tmp_path: Path) -> None:
    base = small_base()
    first = saved(small_t2i_adapter(base), tmp_path / "a")
    second = saved(small_controlnet(base), tmp_path / "b")
    models = ControlModels(base, Settings(adapters=(f"canny={first}", f"sketch={first}", f"depth={second}")))
    adapter = models.get("canny")
    assert models.get("sketch") is models.get("canny") is adapter
    assert not any(parameter.requires_grad for parameter in adapter.parameters())
    models.get("depth")
    assert models.get("canny") is not adapter


def test_an_adapter_for_another_base_is_refused(tmp_path: Path) -> None:
    base, xl = small_base(), small_base(family="sdxl")
    for number, model in enumerate((small_t2i_adapter(xl), small_controlnet(xl))):
        where = saved(model, tmp_path / str(number))
        with raises(AdapterError, code="wrong_base", field="adapter_type"):
            ControlModels(base, Settings(adapters=(f"canny={where}",))).get("canny")


def test_a_folder_that_holds_none_is_refused(tmp_path: Path) -> None:
    with raises(AdapterError, code="unreadable_adapter"):
        load_adapter(str(tmp_path), Settings())
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "ControlNetUnionModel"}))
    with raises(AdapterError, code="unsupported_adapter"):
        load_adapter(str(tmp_path), Settings())
    with raises(AdapterError):
        load_adapter("neither folder nor hub id", Settings())


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "pickled"])
def test_one_on_the_hub_is_downloaded_and_safetensors_come_first(tmp_path: Path, safe: bool) -> None:
    adapter = small_t2i_adapter(small_base())
    saved(adapter, tmp_path / "repository", safe_serialization=safe)
    if safe:
        (tmp_path / "repository" / "diffusion_pytorch_model.bin").write_bytes(b"not asked for")
    with FakeHub("owner/adapter", tmp_path / "repository").running() as hub:
        settings = Settings(model_cache=tmp_path / "cache", hf_endpoint=hub.url)
        loaded = load_adapter("owner/adapter", settings)
    weights = "diffusion_pytorch_model.safetensors" if safe else "diffusion_pytorch_model.bin"
    assert hub.downloaded() == {"config.json", weights}
    for name, value in adapter.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_families_are_told_by_their_widths() -> None:
    assert family_of(small_base()) is None
