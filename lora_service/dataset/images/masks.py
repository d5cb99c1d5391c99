"""Masks of the subject: from a mask file, from transparency, or from a face."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFilter

from lora_service.dataset.images.crops import Box, Crop, Point, Size
from lora_service.dataset.images.decode import DecodedImage, mask_in
from lora_service.dataset.images.decoder_process import DecodeRequest, decode_apart
from lora_service.dataset.images.faces import Face, FaceDetector
from lora_service.dataset.options import DatasetOptions, MaskSource
from lora_service.dataset.upload.source_files import SourceFile, UnusableFileError
from lora_service.errors import shorten

_FACE_WIDTH, _FACE_HEIGHT, _RAISED = 0.75, 0.95, 0.1  # half axes and rise of the masked ellipse, as shares of the
# detector's box, which goes from brows to chin: hair is part of a likeness
_SOFTNESS = 0.08  # blur of the ellipse's edge, as a share of the box
_RATIO_TOLERANCE = 0.02
_THRESHOLD = 128  # a mask's value from which on a pixel is the subject's
_BINARY = [255 if value >= _THRESHOLD else 0 for value in range(256)]


@dataclass(frozen=True)
class Mask:
    """A mask ("L", of the decoded image's size, 255 where the subject is), its source, and warnings for a person."""

    image: Image.Image | None
    source: MaskSource | None
    warnings: tuple[str, ...] = ()

    @property
    def center(self) -> Point | None:
        """The middle of the masked part."""
        box = self.image.point(_BINARY).getbbox() if self.image else None
        if self.image is None or box is None:
            return None
        left, top, right, bottom = box
        return (left + right) / 2 / self.image.width, (top + bottom) / 2 / self.image.height

    def box_in(self, original: Size) -> Box | None:
        """Return the masked part of an original of that size, in its pixels."""
        box = self.image.point(_BINARY).getbbox() if self.image else None
        if self.image is None or box is None:
            return None
        x, y = original[0] / self.image.width, original[1] / self.image.height
        return math.floor(box[0] * x), math.floor(box[1] * y), math.ceil(box[2] * x), math.ceil(box[3] * y)

    def cropped(self, crop: Crop) -> Mask:
        """Return the mask of the crop; none, with a warning, where the crop holds no masked pixel."""
        if self.image is None:
            return self
        image = crop.apply(self.image)
        if _is_empty(image):
            return Mask(None, None, (*self.warnings, "nothing masked is left in its crop, so all of it counts"))
        return Mask(image, self.source, self.warnings)


def find_mask(
    decoded: DecodedImage, file: SourceFile | None, options: DatasetOptions, detector: FaceDetector | None
) -> Mask:
    """Return the mask of an image by ``mask_mode``: from its mask file, its largest face, or its transparency."""
    if options.mask_mode == "none":
        return Mask(None, None)
    if file is not None:
        return _from_file(file, decoded, options)
    alpha = decoded.alpha if options.mask_mode != "face" else None
    if detector is not None and ((faces := detector.detect(decoded.image)) or alpha is None):
        return _from_faces(decoded.image.size, faces)
    if alpha is not None:
        return Mask(alpha, "alpha")
    if options.mask_mode == "files":
        return Mask(None, None, ("it has no mask file, so all of it counts",))
    return Mask(None, None)


def _is_empty(mask: Image.Image) -> bool:
    return mask.point(_BINARY).getbbox() is None


def _from_file(file: SourceFile, decoded: DecodedImage, options: DatasetOptions) -> Mask:
    name = shorten(file.name)
    try:
        mask_file = decode_apart(DecodeRequest.within(options.limits, file, min(decoded.image.size), (0, 0, 0)))
    except UnusableFileError as error:
        return Mask(None, None, (f"its mask {name} is not used: {error}",))
    mask = mask_in(mask_file)
    image_ratio, mask_ratio = (width / height for width, height in (decoded.original, mask_file.original))
    if abs(image_ratio / mask_ratio - 1) > _RATIO_TOLERANCE:
        size = "{} × {}".format(*mask_file.original)
        return Mask(None, None, (f"its mask {name} has another shape ({size}) and is not used",))
    if _is_empty(mask):
        return Mask(None, None, (f"its mask {name} is too dark to show anything, so all of the picture counts",))
    return Mask(mask.resize(decoded.image.size, Image.Resampling.BILINEAR), "file")


def _from_faces(size: Size, faces: list[Face]) -> Mask:
    if not faces:
        return Mask(None, None, ("no face was found, so all of it counts",))
    largest = max(faces, key=lambda face: face.width * face.height)
    warnings = (f"{len(faces)} faces were found, the largest is used",) if len(faces) > 1 else ()
    return Mask(_ellipse(size, largest), "face", warnings)


def _ellipse(size: Size, face: Face) -> Image.Image:
    mask = Image.new("L", size, 0)
    x, y = (face.left + face.width / 2) * size[0], (face.top + (0.5 - _RAISED) * face.height) * size[1]
    half_width, half_height = _FACE_WIDTH * face.width * size[0], _FACE_HEIGHT * face.height * size[1]
    ImageDraw.Draw(mask).ellipse((x - half_width, y - half_height, x + half_width, y + half_height), fill=255)
    return mask.filter(ImageFilter.GaussianBlur(_SOFTNESS * face.width * size[0]))
