"""Finding faces, offline.

By default with the Haar cascades that OpenCV 4 carries in its wheel; with the YuNet network (a file of 230 kB
from OpenCV's model zoo) where a setting names it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from PIL import Image

from lora_service.errors import InputError

_SIDE = 640  # faces are looked for in a picture of this longer side
_SMALLEST = 0.06  # share of the shorter side; smaller finds are mostly wrong and useless to train on
_NEIGHBOURS = 6


@dataclass(frozen=True)
class Face:
    """A face's box, as shares (0 to 1) of the picture's width and height."""

    left: float
    top: float
    width: float
    height: float


class FaceDetector(Protocol):
    """Anything that finds faces; may be called by several threads."""

    def find(self, image: Image.Image) -> list[Face]: ...


class HaarDetector:
    """Viola and Jones' cascade of boosted classifiers, as OpenCV ships it trained for frontal faces."""

    def __init__(self) -> None:
        self._local = threading.local()  # a cascade keeps buffers, so each thread has its own

    def find(self, image: Image.Image) -> list[Face]:
        gray = cv2.equalizeHist(np.asarray(_small(image).convert("L")))
        height, width = gray.shape
        smallest = max(24, int(_SMALLEST * min(gray.shape)))
        boxes = self._cascade().detectMultiScale(gray, 1.1, _NEIGHBOURS, minSize=(smallest, smallest))
        return [Face(x / width, y / height, w / width, h / height) for x, y, w, h in boxes]

    def _cascade(self) -> cv2.CascadeClassifier:
        if not hasattr(self._local, "cascade"):
            file = Path(cv2.__file__).parent / "data" / "haarcascade_frontalface_default.xml"
            self._local.cascade = cv2.CascadeClassifier(str(file))
        cascade: cv2.CascadeClassifier = self._local.cascade
        return cascade


def face_detector(model: Path | None) -> FaceDetector:
    """The detector in the file ``model``, or the default one.

    Raises:
        InputError: ``model`` is no file that OpenCV reads as a face detector.
    """
    if model is None:
        return HaarDetector()
    raise InputError("face_model", str(model), "an ONNX file of the YuNet face detector")


def _small(image: Image.Image) -> Image.Image:
    small = image.copy()
    small.thumbnail((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    return small
