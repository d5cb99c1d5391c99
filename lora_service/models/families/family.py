"""The interface of a family of base models: whatever else in the package depends on a family asks it for that."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from lora_service.models.defaults import ModelDefaults, RegisteredBase

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lora_service.models.components import Components
    from lora_service.models.text_encoders import PromptEmbeds, TextEncoders

PipelineTask = Literal["text2img", "img2img", "inpaint"]
Objective = Literal["diffusion", "flow"]
Pipelines: TypeAlias = Mapping[PipelineTask, str]
Bases: TypeAlias = Mapping[str, RegisteredBase]
Config: TypeAlias = Mapping[str, Any]
"""A model's or scheduler's configuration, as in diffusers' JSON files."""


@dataclass(frozen=True)
class TargetNames:
    """Ends of the paths of a backbone's layers, as the sets of the input ``lora_targets`` are made of.

    Attributes:
        attention: the projections of attention.
        gate: the first layers of feed-forwards.
        feed_forward: the others.
        projections: those around the blocks of attention.
        convolutions: all that :attr:`convolution_targets` name; none: the backbone has no convolutions.
        more_convolutions: what kohya's trainer teaches beside these.
        blocks: children with the blocks, of which kohya's trainer teaches every linear layer; none: it teaches
            attention, feed-forward and projections.
    """

    attention: tuple[str, ...]
    gate: tuple[str, ...]
    feed_forward: tuple[str, ...]
    projections: tuple[str, ...] = ()
    convolutions: tuple[str, ...] = ()
    more_convolutions: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()


class Family(ABC):
    """A family of base models, whose models differ in their weights alone.

    Attributes:
        name: of the family, in code.
        title: of the family, for people.
        backbone: the name of the component that denoises, as in diffusers' folders: ``unet`` or ``transformer``.
        pipelines: diffusers' pipeline classes by what they are given. A folder of the family names one of them.
        bases: the models of the family that have a short name.
        targets: the names of the backbone's layers.
        kept: children of the backbone whose linear layers are never quantized: every layer depends on their few
            weights.
        learns_text: True if its text encoders are CLIP's, which learn new tokens and LoRA layers; else they are frozen.
        objective: what the backbone was trained for: ``diffusion``, or ``flow``, flow matching.
        half_precision: the dtype that is half precision on cards that have it; "": whatever suits the task.
        schedulers: the names of the input ``scheduler`` that the family takes, its default first; none: all.
        caption_tokens: the tokens of a caption that a frozen text encoder reads beside CLIP's; None: there is none.
        own_clip_skip: the layer of the text encoders that is read, counted from the end.
        control_width: the width of the prompt embeds of the family's published ControlNets; None: none are known.
        drawing_step: the factor of widths and heights of what is drawn, where it is another than :meth:`size_step`.
        takes_packed_latents: True if its pipelines' argument ``latents`` is as of :meth:`pack`.
        reads_negative_prompt: False if its pipelines have no guidance away from a prompt.
        repeats_prompts: False if its pipelines take prompt embeds of each image, and not of each prompt.
        ragged: children of its backbone that are given the texts of a batch in one row, whatever their lengths.
        file_keys: tensors, in the original layout and diffusers', that no files but those of its backbones have; none:
            they are known otherwise.
        imports: what a server's worker imports before its first job, as of ``lora_service.services.worker.import_all``.
        t2i_adapter_end: the end of the ``adapter_type`` of its T2I-Adapters.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    backbone: ClassVar[str]
    pipelines: ClassVar[Pipelines]
    bases: ClassVar[Bases]
    targets: ClassVar[TargetNames]
    kept: ClassVar[tuple[str, ...]] = ()
    learns_text: ClassVar[bool] = False
    objective: ClassVar[Objective] = "diffusion"
    half_precision: ClassVar[str] = ""
    schedulers: ClassVar[tuple[str, ...]] = ()
    caption_tokens: ClassVar[int | None] = None
    own_clip_skip: ClassVar[int] = 1
    control_width: ClassVar[int | None] = None
    t2i_adapter_end: ClassVar[str] = "_adapter"
    drawing_step: ClassVar[int | None] = None
    takes_packed_latents: ClassVar[bool] = False
    reads_negative_prompt: ClassVar[bool] = True
    repeats_prompts: ClassVar[bool] = True
    ragged: ClassVar[tuple[str, ...]] = ()
    file_keys: ClassVar[tuple[str, ...]] = ()
    imports: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def matches(self, backbone: Config) -> bool:
        """Return True for a model of the family, by its backbone's config; its pipeline's class is one of ours."""

    @abstractmethod
    def defaults(self, scheduler: Config, pipeline: Config) -> ModelDefaults:
        """Return the defaults of a model that has none of its own, by the configs of its scheduler and pipeline."""

    @abstractmethod
    def check(self, name: str, components: Components) -> None:
        """Check that the components of the base ``name`` fit together.

        Raises:
            BaseModelError: they do not.
        """

    @abstractmethod
    def text_encoders(self, components: Components) -> TextEncoders:
        """Return the text encoders of ``components``."""

    @abstractmethod
    def predict(
        self, backbone: Any, noisy: Tensor, timesteps: Tensor, text: PromptEmbeds, sizes: Tensor | None
    ) -> Tensor:
        """Run the backbone on noisy latents; all as of ``DiffusionBase.denoise``."""

    @property
    def takes_sizes(self) -> bool:
        """True if the backbone is given the pictures' sizes."""
        return False

    def scheduler_config(self, name: str, config: Config, defaults: ModelDefaults | None) -> dict[str, Any]:
        """Return the scheduler config ``config`` of the base ``name``, in which ``defaults`` win.

        Raises:
            BaseModelError: it is of no supported kind.
        """
        return dict(config)

    def pipeline_options(self, pipeline: Config) -> dict[str, Any]:
        """Return the arguments of the pipelines' classes beside backbone, VAE and scheduler.

        Args:
            pipeline: the config of the base's own pipeline.
        """
        return {"text_encoder": None, "tokenizer": None}

    def loading_options(self) -> dict[str, Any]:
        """Return the arguments of the pipelines' ``from_pretrained``."""
        return {}

    def vae_dtype(self, config: Config, dtype: torch.dtype) -> torch.dtype:
        """Return the dtype of a VAE of ``config`` beside a backbone of ``dtype``."""
        return dtype

    def guidance(self, scale: float) -> dict[str, Any]:
        """Return the arguments of the pipelines for a guidance scale."""
        return {"guidance_scale": scale}

    def takes_guidance(self, backbone: Any, pipeline: Config) -> bool:
        """Return False for a base that was distilled to draw without guidance, and cannot have any."""
        return True

    def guides(self, scale: float) -> bool:
        """Return True if a guidance scale is more than none: the negative prompt, if there is one, is read."""
        return scale > 1

    def encode(self, vae: Any, pixels: Tensor) -> Any:
        """Return the posterior of pictures ``(b, 3, h, w)``: diffusers' distribution of latents ``(b, c, h, w)``."""
        return vae.encode(pixels).latent_dist

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Return pictures ``(b, 3, h, w)`` of the VAE's latents ``(b, c, h, w)``."""
        pixels: Tensor = vae.decode(latents).sample
        return pixels

    def vae_widths(self, vae: Any) -> tuple[int, ...]:
        """Return the channels of the VAE's levels, from the pictures' own size on."""
        return tuple(vae.config.block_out_channels)

    def latent_factor(self, vae: Any) -> int:
        """Return the side of a picture in pixels divided by that of its latents."""
        return int(2 ** (len(vae.config.block_out_channels) - 1))

    def is_inpainting(self, vae: Any, backbone: Any) -> bool:
        """Return True for a backbone that takes a mask and the latents of a masked picture behind the noisy ones."""
        return False

    @abstractmethod
    def drawing_bytes(self, backbone: Any, height: int, width: int) -> float:
        """Return the bytes of the largest tensors at once for one picture of ``height`` × ``width`` latents."""

    def pack(self, latents: Tensor) -> Tensor:
        """Return latents ``(b, c, h, w)`` as the family's pipelines hold them between steps."""
        return latents

    def unpack(self, packed: Tensor, height: int, width: int) -> Tensor:
        """Return the latents ``(b, c, h, w)`` that :meth:`pack` made ``packed`` of."""
        return packed

    def positions(self, height: int, width: int) -> int:
        """Return the positions at which a backbone sees ``height`` × ``width`` latents."""
        return height * width

    def log_shift(self, scheduler: Config, positions: int, steps: int) -> float:
        """Return diffusers' ``mu``, the logarithm of the shift of a scheduler that has none of its own."""
        return 0.0

    def shift(self, scheduler: Config, positions: int) -> float:
        """Return the factor by which noise levels σ are shifted at a resolution: ``shift · σ / (1 + (shift − 1) σ)``.

        (https://arxiv.org/abs/2403.03206, equation 23.) Only families of flow matching have one.
        """
        return 1.0

    @abstractmethod
    def size_step(self, vae: Any, backbone: Any) -> int:
        """Return the factor of widths and heights in pixels."""

    def text_blocks(self, backbone: Any) -> Mapping[str, int]:
        """Return children with blocks of text alone, of which no gradients are checkpointed.

        Returns:
            Path of the child -> the positions that its blocks work on, in positions of the text.
        """
        return {}

    def longest_side(self, vae: Any, backbone: Any) -> int | None:
        """Return the most pixels of a side; None: any number."""
        return None

    def to_backbone(self, vae: Any, latents: Tensor) -> Tensor:
        """Return latents of the VAE as the backbone takes them, with about unit variance."""
        return (latents - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor

    def deviation_to_backbone(self, vae: Any, deviation: Tensor) -> Tensor:
        """Return the standard deviation of the VAE's latents in those of :meth:`to_backbone`."""
        return deviation * vae.config.scaling_factor

    def to_vae(self, vae: Any, latents: Tensor) -> Tensor:
        """Return the VAE's latents, of which :meth:`to_backbone` made ``latents``."""
        return latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
