"""Files of a transformer alone are loaded with their own weights, and the rest of BASE_COMPONENTS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lora_service.errors import BaseModelError
from lora_service.lora.flow.conversion import to_originals
from lora_service.lora.lycoris import FullDifference
from lora_service.lora.weights import BIAS
from lora_service.models.loading import load_base
from lora_service.models.registry import family_at
from lora_service.settings import Settings
from tests.errors import raises
from tests.lora.flow_fakes import BY_NAME, full_size_transformer
from tests.small_flow import FLOW_FAMILIES, flow_pipeline_of, small_flow_base


def other_weights(family: str) -> dict[str, Tensor]:
    """Return weights of the small transformer that are not those of its base."""
    own = small_flow_base(family).backbone.state_dict()
    generator = torch.Generator().manual_seed(9)
    return {name: torch.randn(tensor.shape, generator=generator) * 0.1 for name, tensor in own.items()}


def in_original_layout(family: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights under the original names behind ComfyUI's prefix; norms may end in ``scale``."""
    paths = {key.removesuffix(".weight"): key for key in tensors}
    find = BY_NAME[family].find_path
    known = {path: FullDifference(tensors[key]) for path, key in paths.items() if find(path.removesuffix(BIAS))}
    written = {
        f"model.diffusion_model.{each.name}{_ending(family, each.name)}": each.change.values  # type: ignore[attr-defined]
        for each in to_originals(BY_NAME[family], known)
    }
    rest = {f"model.diffusion_model.{key}": tensors[key] for path, key in paths.items() if path not in known}
    return written | rest


def _ending(family: str, name: str) -> str:
    if name.endswith(BIAS):
        return ""
    return ".scale" if family == "flux2-klein" and "_norm" in name else ".weight"


def save(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    return path


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the settings of a file of ``family``, whose other parts are those of a small base."""

    def of(path: Path, family: str) -> Settings:
        folder = tmp_path / family
        if not folder.exists():
            flow_pipeline_of(small_flow_base(family)).save_pretrained(folder)
        monkeypatch.setenv("BASE_MODEL", str(path))
        monkeypatch.setenv("BASE_COMPONENTS", str(folder))
        return Settings.from_environment()

    return of


@pytest.mark.parametrize(
    ("family", "is_original"), [*((family, False) for family in FLOW_FAMILIES), ("flux2-klein", True), ("zimage", True)]
)
def test_a_file_is_loaded_with_its_weights(family: str, is_original: bool, tmp_path: Path, settings: Any) -> None:
    weights = other_weights(family)
    tensors = in_original_layout(family, weights) if is_original else weights
    path = save(tmp_path / "model.safetensors", tensors)
    base = load_base(settings(path, family))
    assert base.family.name == family
    loaded = base.backbone.state_dict()
    assert loaded.keys() == weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(loaded[name], tensor, atol=0, rtol=0)


@pytest.mark.parametrize("family", FLOW_FAMILIES)
def test_a_file_is_known_by_names_that_full_size_models_have(family: str, tmp_path: Path) -> None:
    names = full_size_transformer(family).state_dict()
    path = save(tmp_path / "model.safetensors", {name: torch.zeros(1) for name in names})
    found = family_at(str(path), path)
    assert found is not None
    assert found.name == family


def test_files_that_would_be_wrong_are_refused(tmp_path: Path, settings: Any) -> None:
    weights = other_weights("zimage")
    scaled = weights | {"layers.0.attention.to_q.scale_weight": torch.ones(1)}
    whole = weights | {"vae.decoder.conv_in.weight": torch.ones(1)}
    for tensors in (scaled, whole):
        path = save(tmp_path / "model.safetensors", tensors)
        with raises(BaseModelError, code="unsupported_model", field="BASE_MODEL"):
            load_base(settings(path, "zimage"))
    path = save(tmp_path / "model.safetensors", weights)
    with raises(BaseModelError, code="unsupported_model", field="BASE_MODEL") as caught:
        load_base(settings(path, "flux2-klein"))
    assert "BASE_COMPONENTS" in str(caught.value)


@pytest.mark.parametrize("change", ["another shape", "missing"])
def test_a_file_that_does_not_fit_its_components_is_refused(change: str, tmp_path: Path, settings: Any) -> None:
    weights, name = other_weights("zimage"), "layers.1.feed_forward.w1.weight"
    tensor = weights.pop(name)
    more = {name: tensor[:-1]} if change == "another shape" else {}
    path = save(tmp_path / "model.safetensors", weights | more)
    with raises(BaseModelError, code="incomplete_model", field="BASE_MODEL"):
        load_base(settings(path, "zimage"))
