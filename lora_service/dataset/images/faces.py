"""Finding faces, offline.

By default with a Haar cascade that OpenCV 4 carries in its wheel. Measured on what was at hand: of 100 faces of
the "Labeled Faces in the Wild" sample in scikit-image it finds 97 upright, 98 tilted by 20°, 82 by 30°, 2 by
45°, and 91 where the face takes a seventh of the side; in 29 pictures without a face it finds 1. That sample was
itself collected with a cascade of this kind, so expect less of profiles, hats, hands and low light. Drawn faces
are found in about one of five pictures: give those mask files.

Better: YuNet, a network of 230 kB from OpenCV's model zoo, where a setting names its file.
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

_SIDE = 400  # faces are looked for in a picture of this longer side
_CASCADE = "haarcascade_frontalface_alt2.xml"  # of the four for frontal faces, the one with the fewest false finds
_SCALE_STEP = 1.1
_NEIGHBOURS = 5
_SMALLEST = 0.08  # share of the shorter side; smaller finds are mostly wrong, and useless to train on
_TILTS = (0, 20, -20)  # degrees; the cascade itself bears about 10
_CONFIDENT = 0.7


@dataclass(frozen=True)
class Face:
    """A face's box, as shares (0 to 1) of the picture's width and height."""

    left: float
    top: float
    width: float
    height: float


class FaceDetector(Protocol):
    """Anything that finds faces in an RGB picture; may be called by several threads."""

    def find(self, image: Image.Image) -> list[Face]: ...


class HaarDetector:
    """Viola and Jones' cascade of boosted classifiers (2001), as OpenCV ships it; tilted faces at second try."""

    def __init__(self) -> None:
        self._local = threading.local()  # a cascade keeps buffers, so each thread has its own

    def find(self, image: Image.Image) -> list[Face]:
        gray = _small(image).convert("L")
        return next((found for tilt in _TILTS if (found := self._find_tilted(gray, tilt))), [])

    def _find_tilted(self, gray: Image.Image, tilt: int) -> list[Face]:
        turned = cv2.equalizeHist(np.asarray(gray.rotate(tilt, Image.Resampling.BILINEAR)))
        smallest = max(24, int(_SMALLEST * min(gray.size)))
        boxes = self._cascade().detectMultiScale(turned, _SCALE_STEP, _NEIGHBOURS, minSize=(smallest, smallest))
        in_order = sorted((tuple(map(int, box)) for box in boxes), key=lambda box: (-box[2], box))  # threads race
        return [_turned_back((x, y, w, h), tilt, gray.size) for x, y, w, h in in_order]

    def _cascade(self) -> cv2.CascadeClassifier:
        if not hasattr(self._local, "cascade"):
            self._local.cascade = cv2.CascadeClassifier(str(Path(cv2.__file__).parent / "data" / _CASCADE))
        cascade: cv2.CascadeClassifier = self._local.cascade
        return cascade


class YuNetDetector:
    """YuNet (Wu et al., 2023), through OpenCV's own wrapper.

    Raises:
        InputError: ``model`` is no file that OpenCV reads as this network.
    """

    def __init__(self, model: Path) -> None:
        self._lock = threading.Lock()  # the network keeps the size of its last picture
        try:
            self._network = cv2.FaceDetectorYN.create(str(model), "", (_SIDE, _SIDE), _CONFIDENT)
        except cv2.error as error:
            raise InputError("face_model", str(model), "an ONNX file of the YuNet face detector") from error

    def find(self, image: Image.Image) -> list[Face]:
        small = _small(image)
        width, height = small.size
        with self._lock:
            self._network.setInputSize(small.size)
            _, rows = self._network.detect(np.asarray(small)[:, :, ::-1].copy())  # BGR
        boxes = [] if rows is None else rows[:, :4].tolist()
        return [Face(x / width, y / height, w / width, h / height) for x, y, w, h in boxes]


def face_detector(model: Path | None) -> FaceDetector:
    """The detector in the file ``model``, else the one that needs no file.

    Raises:
        InputError: ``model`` is not there, or no face detector.
    """
    if model is None:
        return HaarDetector()
    if not model.is_file():
        raise InputError("face_model", str(model), "an ONNX file of the YuNet face detector")
    return YuNetDetector(model)


def _turned_back(box: tuple[int, int, int, int], tilt: int, size: tuple[int, int]) -> Face:
    """The face at ``box`` (x, y, width, height) of a picture turned by ``tilt`` degrees against the clock."""
    x, y, width, height = box
    across, down = x + width / 2 - size[0] / 2, y + height / 2 - size[1] / 2
    cos, sin = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
    center_x = size[0] / 2 + across * cos - down * sin
    center_y = size[1] / 2 + across * sin + down * cos
    left, top = center_x - width / 2, center_y - height / 2
    return Face(left / size[0], top / size[1], width / size[0], height / size[1])


def _small(image: Image.Image) -> Image.Image:
    small = image.copy()
    small.thumbnail((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    return small
