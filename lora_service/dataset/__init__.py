"""Whatever a person uploads, to checked, upright, captioned and masked pictures, and a report of the rest."""

from lora_service.dataset.load import load_dataset
from lora_service.dataset.options import DatasetOptions, UploadLimits
from lora_service.dataset.report import DatasetReport
from lora_service.dataset.training_images import TrainingDataset, TrainingImage

__all__ = [
    "DatasetOptions",
    "DatasetReport",
    "TrainingDataset",
    "TrainingImage",
    "UploadLimits",
    "load_dataset",
]
