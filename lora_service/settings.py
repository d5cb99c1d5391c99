"""The environment's settings, read once into one frozen object."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from lora_service.errors import SettingError
from lora_service.validation import first_error

MEBIBYTE = 1024**2
Tracker = Literal["tensorboard", "wandb", "comet"]
Quantization = Literal["none", "int8", "nf4", "fp8"]
_CACHE = Path("~/.cache/lora-service").expanduser()


def _web_address(value: str, info: ValidationInfo) -> str:
    try:
        parts = urlsplit(value)
        if not value or (parts.scheme in ("http", "https") and parts.hostname and parts.port != 0):
            return value.rstrip("/")
    except ValueError:
        pass  # a bracket that is not closed, or a port that is no number
    raise SettingError(str(info.field_name).upper(), value, "an http(s) address, or empty")


def _from_home(value: Path, info: ValidationInfo) -> Path:
    try:
        return value.expanduser()
    except RuntimeError as error:
        expected = "a path under a home that exists, like ~/models"
        raise SettingError(str(info.field_name).upper(), str(value), expected) from error


def _split(value: object) -> object:
    return tuple(part for part in re.split(r"[\s,|]+", value) if part) if isinstance(value, str) else value


HomePath = Annotated[Path, AfterValidator(_from_home)]
"""A path whose ``~`` is expanded, as a shell would; a container's or a service's environment has none."""
Item = TypeVar("Item")
SeparatedList = Annotated[tuple[Item, ...], NoDecode, BeforeValidator(_split)]
"""Values between commas, spaces or bars."""
WebAddress = Annotated[str, AfterValidator(_web_address)]
"""An http(s) address without a slash at its end, or ''."""


class EnvironmentSettings(BaseSettings):
    """Settings whose errors name the environment variable."""

    @classmethod
    def from_environment(cls) -> Self:
        """Read the settings of this process.

        Raises:
            SettingError: a variable's value cannot be used.
        """
        try:
            return cls()
        except ValidationError as error:
            first = first_error(error)
            raise SettingError(first.field.upper(), first.value, first.expected) from error


class Settings(EnvironmentSettings):
    """Every environment variable the service reads; names are the variables' names in lower case."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    base_model: str = "embedded"
    """``embedded``, ``sd15``, ``sd21``, ``sd21-base``, ``sdxl``, a hub id, a folder, or a single file."""
    base_components: str = ""
    """Where ``BASE_MODEL`` is the file of a transformer, the base with its other parts; "": its family's first."""
    model_cache: HomePath = _CACHE / "models"
    lora_cache: HomePath = _CACHE / "loras"
    lora_cache_max_bytes: int = Field(default=4096 * MEBIBYTE, ge=0)
    class_image_cache: HomePath = _CACHE / "class-images"
    class_image_cache_max_bytes: int = Field(default=1024 * MEBIBYTE, ge=0)
    max_download_bytes: int = Field(default=2048 * MEBIBYTE, ge=1)
    max_zip_bytes: int = Field(default=1024 * MEBIBYTE, ge=1)
    """Largest size of an archive, packed and unpacked alike."""
    max_pictures: int = Field(default=1000, ge=1)
    max_members: int = Field(default=20_000, ge=1)
    """Files in one archive."""
    max_picture_bytes: int = Field(default=256 * MEBIBYTE, ge=1)
    """One file of an archive, unpacked."""
    max_caption_bytes: int = Field(default=64 * 1024, ge=1)
    """One picture's caption file."""
    max_table_bytes: int = Field(default=16 * MEBIBYTE, ge=1)
    """A table of captions, such as ``captions.csv``."""
    max_repeats: int = Field(default=1000, ge=1)
    """Largest repeat count in a folder's name like ``10_ohwx dog``."""
    max_pixels: int = Field(default=120_000_000, ge=1, le=178_956_970)
    """Width × height of one picture; Pillow itself refuses more than the upper limit."""
    max_decode_bytes: int = Field(default=2048 * MEBIBYTE, ge=256 * MEBIBYTE)
    """Memory of the process that decodes one picture."""
    max_decode_seconds: int = Field(default=30, ge=1)
    """Time for decoding one picture, after which it is left out."""
    max_ratio: int = Field(default=200, ge=1)
    """Largest ratio of unpacked to packed size of a file in an archive."""
    max_download_seconds: float = Field(default=1800, gt=0)
    """Time for all links of a job together."""
    max_pixel_steps: int = Field(default=2_000_000_000, ge=1)
    """Width × height × steps × pictures of one request."""
    face_model: HomePath | None = None
    """An ONNX file of the YuNet face detector; none: the cascade that OpenCV carries."""
    caption_model: str = ""
    """A folder or hub id of the model that writes captions in ``caption_mode`` ``model``."""
    likeness_model: str = "auto"
    """The judge of how like the subject a training's samples are: ``auto`` (for the embedded base its own judge),
    ``none``, or a folder or hub id of a CLIP or a DINO."""
    allow_private_addresses: SeparatedList[str] = ()
    """``host:port`` or ``host:*``, comma-separated, that may be fetched although the address is private."""
    hf_endpoint: WebAddress = ""
    """Address of the hub that base models are downloaded from; empty: huggingface.co."""
    hf_token: SecretStr = SecretStr("")
    civitai_token: SecretStr = SecretStr("")
    safety_checker: str = ""
    """A folder or hub id of Stable Diffusion's safety checker; empty: pictures are not checked."""
    allow_disabling_safety_checker: bool = False
    """True if the input ``disable_safety_checker`` is followed."""
    adapters: Annotated[tuple[str, ...], NoDecode] = ()
    """``type=folder`` or ``type=owner/name``, split by ``|``: ControlNets and T2I-Adapters beside the known ones."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    base_quantization: Quantization = "none"
    """The format of the weights of the UNet's linear layers on CUDA: int8 and nf4 for trainings, fp8 for drawing."""
    offload_blocks: bool = False
    """Whether the blocks of a transformer wait in the host's memory, and come to the card where they are computed."""
    compile: bool = False
    """True if the UNet and the VAE's decoder are compiled before a server that draws is READY."""
    cuda_graphs: bool = False
    """On CUDA, whether kernels are recorded and replayed: of training steps; of drawing, with ``compile``."""
    warm_up: bool = False
    """True if a server does before it is READY what the first job would wait for."""
    trackers: SeparatedList[Tracker] = ()
    """``tensorboard``, ``wandb`` and ``comet``, comma-separated: where trainings are logged to besides."""
    tracker_folder: HomePath | None = None
    """A folder for what trackers keep on disk; none: ``trackers`` in each training's own, which a server removes."""
    run_folders: HomePath | None = None
    """A folder in which a training server keeps the runs that are named with their jobs; none: nothing is kept."""
    train_processes: int = Field(default=1, ge=1, le=64)
    """Processes that train one LoRA together, each on a GPU of its own."""
    torch_threads: int = Field(default=0, ge=0)
    """CPU threads; 0: as many as there are cores. The same seed gives the same bytes at the same number."""

    @field_validator("adapters", mode="before")
    @classmethod
    def _split_paths(cls, value: object) -> object:
        """Split at ``|`` alone: folders may have spaces and commas."""
        return tuple(part.strip() for part in value.split("|") if part.strip()) if isinstance(value, str) else value
