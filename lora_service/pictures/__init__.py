"""Whatever a person uploads, to checked, upright, captioned and masked pictures, and a report of the rest."""

from lora_service.pictures.dataset import TrainingPicture, TrainingPictures
from lora_service.pictures.options import Limits, PictureOptions
from lora_service.pictures.reading import read_pictures
from lora_service.pictures.report import PictureReport

__all__ = [
    "Limits",
    "PictureOptions",
    "PictureReport",
    "TrainingPicture",
    "TrainingPictures",
    "read_pictures",
]
