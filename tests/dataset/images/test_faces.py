"""Face detection, on faces drawn at known places."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from lora_service.dataset.images.faces import Face, HaarDetector, face_detector
from lora_service.errors import InputError
from tests.dataset.picture_makers import draw_face, picture
from tests.errors import raises

GROUND = (120, 140, 160)


def middle(face: Face) -> tuple[float, float]:
    return face.left + face.width / 2, face.top + face.height / 2


@pytest.mark.parametrize("place", [(256, 256), (130, 256), (380, 200)])
@pytest.mark.parametrize("tilt", [0, 20, -20])
def test_a_face_is_detected_upright_and_tilted(tilt: int, place: tuple[int, int]) -> None:
    image = Image.new("RGB", (512, 512), GROUND)
    draw_face(image, *place, 110)
    (face,) = HaarDetector().detect(image.rotate(tilt, fillcolor=GROUND))
    across, down = place[0] - 256, place[1] + 14 - 256  # between eyes and mouth
    cos, sin = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
    expected = (256 + across * cos + down * sin) / 512, (256 - across * sin + down * cos) / 512
    assert middle(face) == pytest.approx(expected, abs=0.03)
    assert 0.25 < face.width < 0.4


def test_several_faces_are_detected() -> None:
    image = Image.new("RGB", (900, 512), GROUND)
    draw_face(image, 150, 256, 110)
    draw_face(image, 600, 256, 150)
    assert len(HaarDetector().detect(image)) == 2


def test_blotches_are_no_faces() -> None:
    assert not any(HaarDetector().detect(picture(seed, (512, 512))) for seed in range(5))


def test_a_missing_or_invalid_model_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "faces.onnx"
    text.write_text("no network")
    for path in (tmp_path / "missing.onnx", text):
        with raises(InputError, field="face_model") as refused:
            face_detector(path)
        assert refused.value.value == str(path)


def test_a_named_model_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With OpenCV's wrapper replaced by one that detects a face, as the network is no part of the project."""
    calls = []

    class Network:
        def setInputSize(self, size: tuple[int, int]) -> None:
            calls.append(size)

        def detect(self, image: Any) -> tuple[int, Any]:
            calls.append((image.shape, image[0, 0].tolist()))
            return 1, np.array([[40, 20, 100, 125, *range(10), 0.9]], dtype=np.float32)

    monkeypatch.setattr(cv2.FaceDetectorYN, "create", lambda *_: Network())
    model = tmp_path / "faces.onnx"
    model.touch()
    (face,) = face_detector(model).detect(Image.new("RGB", (1280, 640), (1, 2, 3)))
    assert calls == [(400, 200), ((200, 400, 3), [3, 2, 1])]
    assert (face.left, face.top, face.width, face.height) == (0.1, 0.1, 0.25, 0.625)
