"""Face detection without network access.

The default is a Haar cascade that OpenCV 4 carries in its wheel. Of the 100 faces of the "Labeled Faces in the Wild"
sample in scikit-image it detects 97 upright, 98 tilted by 20°, 82 by 30°, 2 by 45°, and 91 where the face takes a
seventh of the side; in 29 images without a face it detects 1. That sample was itself collected with a cascade of
this kind, so expect less of profiles, hats, hands and low light. Drawn faces are detected in about one of five images:
use mask files for those.

YuNet, a network of 230 kB from OpenCV's model zoo, is better; the setting ``FACE_MODEL`` names its file.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from PIL import Image

from lora_service.errors import InputError

_SIDE = 400  # detection runs on an image of this longer side
_CASCADE = "haarcascade_frontalface_alt2.xml"  # of the four for frontal faces, the one with the fewest false positives
_SCALE_STEP = 1.1
_NEIGHBOURS = 5
_MIN_SIZE = 0.08  # share of the shorter side; smaller detections are mostly wrong, and useless to train on
_TILTS = (0, 20, -20)  # degrees; the cascade itself tolerates about 10
_MIN_CONFIDENCE = 0.7


@dataclass(frozen=True)
class Face:
    """A face's box, as shares (0 to 1) of the image's width and height."""

    left: float
    top: float
    width: float
    height: float


class FaceDetector(Protocol):
    """Detects faces in an RGB image; may be called by several threads."""

    def detect(self, image: Image.Image) -> list[Face]: ...


class HaarDetector:
    """Viola and Jones' cascade of boosted classifiers (2001), as OpenCV ships it; tilted images are tried second."""

    def __init__(self) -> None:
        self._local = threading.local()  # a cascade keeps buffers, so each thread has its own

    def detect(self, image: Image.Image) -> list[Face]:
        gray = _reduce_for_detection(image).convert("L")
        return next((faces for tilt in _TILTS if (faces := self._detect_tilted(gray, tilt))), [])

    def _detect_tilted(self, gray: Image.Image, tilt: int) -> list[Face]:
        rotated = cv2.equalizeHist(np.asarray(gray.rotate(tilt, Image.Resampling.BILINEAR)))
        smallest = max(24, int(_MIN_SIZE * min(gray.size)))
        boxes = self._cascade().detectMultiScale(rotated, _SCALE_STEP, _NEIGHBOURS, minSize=(smallest, smallest))
        ordered = sorted(
            (tuple(map(int, box)) for box in boxes), key=lambda box: (-box[2], box)
        )  # OpenCV's threads race
        return [_rotate_back((x, y, w, h), tilt, gray.size) for x, y, w, h in ordered]

    def _cascade(self) -> cv2.CascadeClassifier:
        if not hasattr(self._local, "cascade"):
            self._local.cascade = cv2.CascadeClassifier(str(Path(cv2.__file__).parent / "data" / _CASCADE))
        cascade: cv2.CascadeClassifier = self._local.cascade
        return cascade


class YuNetDetector:
    """YuNet (Wu et al., 2023), through OpenCV's wrapper.

    Raises:
        InputError: OpenCV cannot load ``model`` as this network.
    """

    def __init__(self, model: Path) -> None:
        self._lock = threading.Lock()  # the network keeps the size of its last image
        try:
            self._network = cv2.FaceDetectorYN.create(str(model), "", (_SIDE, _SIDE), _MIN_CONFIDENCE)
        except cv2.error as error:
            raise InputError("face_model", str(model), "an ONNX file of the YuNet face detector") from error

    def detect(self, image: Image.Image) -> list[Face]:
        small = _reduce_for_detection(image)
        width, height = small.size
        with self._lock:
            self._network.setInputSize(small.size)
            _, rows = self._network.detect(np.asarray(small)[:, :, ::-1].copy())  # BGR
        boxes = [] if rows is None else rows[:, :4].tolist()
        return [Face(x / width, y / height, w / width, h / height) for x, y, w, h in boxes]


def face_detector(model: Path | None) -> FaceDetector:
    """Return the detector in the file ``model``, else the one that needs no file.

    Raises:
        InputError: ``model`` does not exist, or is no face detector.
    """
    if model is None:
        return HaarDetector()
    if not model.is_file():
        raise InputError("face_model", str(model), "an ONNX file of the YuNet face detector")
    return YuNetDetector(model)


def _rotate_back(box: tuple[int, int, int, int], tilt: int, size: tuple[int, int]) -> Face:
    """Return the upright image's face at ``box`` (x, y, width, height) of the image rotated by ``tilt`` degrees."""
    x, y, width, height = box
    across, down = x + width / 2 - size[0] / 2, y + height / 2 - size[1] / 2
    cos, sin = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
    center_x = size[0] / 2 + across * cos - down * sin
    center_y = size[1] / 2 + across * sin + down * cos
    left, top = center_x - width / 2, center_y - height / 2
    return Face(left / size[0], top / size[1], width / size[0], height / size[1])


def _reduce_for_detection(image: Image.Image) -> Image.Image:
    small = image.copy()
    small.thumbnail((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    return small
