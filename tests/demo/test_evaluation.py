"""The metrics of the demonstration."""

import pytest
from PIL import Image

from lora_service.demo.evaluation import drift


def test_drift_is_the_mean_change_of_a_pixel() -> None:
    black, gray = Image.new("RGB", (64, 64)), Image.new("RGB", (64, 64), (51, 51, 51))
    assert drift(black, black) == 0
    assert drift(black, gray) == pytest.approx(0.2)
