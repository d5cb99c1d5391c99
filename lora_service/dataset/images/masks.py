"""Where in a picture the subject is."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFilter

from lora_service.dataset.choices import MaskSource
from lora_service.dataset.images.crops import Crop
from lora_service.dataset.images.decode import DecodedImage, UnusableFile, decode_mask
from lora_service.dataset.images.faces import Face, FaceDetector
from lora_service.dataset.options import DatasetOptions
from lora_service.dataset.upload.archives import SourceFile

_FACE_WIDTH, _FACE_HEIGHT, _RAISED = 0.75, 0.95, 0.1  # half axes and rise of the masked ellipse, as shares of the
# detector's box, which goes from brows to chin: with the hair, as that is how a person is known
_SOFTNESS = 0.08  # blur of the ellipse's edge, as a share of the box
_SHAPE_TOLERANCE = 0.02
_MASKED = 128  # a mask's value from which on a pixel is the subject's
_CLEARLY = [255 if value >= _MASKED else 0 for value in range(256)]


@dataclass(frozen=True)
class Mask:
    """A mask ("L", of the decoded picture's size, 255 where the subject is), where it came from, and warnings."""

    image: Image.Image | None
    source: MaskSource | None
    warnings: tuple[str, ...] = ()

    @property
    def center(self) -> tuple[float, float] | None:
        """The middle of the masked part, as shares (0 to 1) of width and height."""
        box = self.image.point(_CLEARLY).getbbox() if self.image else None
        if self.image is None or box is None:
            return None
        left, top, right, bottom = box
        return (left + right) / 2 / self.image.width, (top + bottom) / 2 / self.image.height

    def framed(self, framing: Crop) -> Mask:
        """The mask of the framed part; none, with a warning, where nothing masked is left in it."""
        if self.image is None:
            return self
        image = framing.apply(self.image)
        if _is_empty(image):
            return Mask(None, None, (*self.warnings, "nothing masked is left in its crop, so all of it counts"))
        return Mask(image, self.source, self.warnings)


def find_mask(
    picture: DecodedImage, file: SourceFile | None, options: DatasetOptions, faces: FaceDetector | None
) -> Mask:
    """The mask of ``picture``: its file, else its transparency, else its largest face, as the options ask."""
    if options.mask_mode == "none":
        return Mask(None, None)
    if file is not None:
        return _from_file(file, picture, options)
    if options.mask_mode != "face" and picture.alpha is not None:
        return Mask(picture.alpha, "alpha")
    if faces is not None:
        return _from_faces(picture.image.size, faces.find(picture.image))
    if options.mask_mode == "files":
        return Mask(None, None, ("it has no mask file, so all of it counts",))
    return Mask(None, None)


def _is_empty(mask: Image.Image) -> bool:
    return mask.point(_CLEARLY).getbbox() is None


def _from_file(file: SourceFile, picture: DecodedImage, options: DatasetOptions) -> Mask:
    try:
        mask = decode_mask(file, options.limits.max_pixels)
    except UnusableFile as error:
        return Mask(None, None, (f"its mask {file.name} is not used: {error}",))
    wanted, given = (width / height for width, height in (picture.original, mask.size))
    if abs(wanted / given - 1) > _SHAPE_TOLERANCE:
        size = f"{mask.width} × {mask.height}"
        return Mask(None, None, (f"its mask {file.name} has another shape ({size}) and is not used",))
    if _is_empty(mask):
        return Mask(None, None, (f"its mask {file.name} is too dark to show anything, so all of the picture counts",))
    return Mask(mask.resize(picture.image.size, Image.Resampling.BILINEAR), "file")


def _from_faces(size: tuple[int, int], faces: list[Face]) -> Mask:
    if not faces:
        return Mask(None, None, ("no face was found, so all of it counts",))
    largest = max(faces, key=lambda face: face.width * face.height)
    warnings = (f"{len(faces)} faces were found, the largest is used",) if len(faces) > 1 else ()
    return Mask(_ellipse(size, largest), "face", warnings)


def _ellipse(size: tuple[int, int], face: Face) -> Image.Image:
    mask = Image.new("L", size, 0)
    x, y = (face.left + face.width / 2) * size[0], (face.top + (0.5 - _RAISED) * face.height) * size[1]
    half_width, half_height = _FACE_WIDTH * face.width * size[0], _FACE_HEIGHT * face.height * size[1]
    ImageDraw.Draw(mask).ellipse((x - half_width, y - half_height, x + half_width, y + half_height), fill=255)
    return mask.filter(ImageFilter.GaussianBlur(_SOFTNESS * face.width * size[0]))
