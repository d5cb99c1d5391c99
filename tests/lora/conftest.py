"""Fixtures that the tests of patching share."""

from __future__ import annotations

import pytest

from lora_service.lora.patcher import Patcher
from tests.small_models import SmallModels, small_models


@pytest.fixture
def models() -> SmallModels:
    return small_models("sd1")


@pytest.fixture
def patcher(models: SmallModels) -> Patcher:
    return Patcher(models.components, models.tokenizers)
