"""What Stable Diffusion 1.x, 2.x and XL share: a UNet, CLIP's text encoders, and a VAE of eight pixels a latent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from lora_service.models.defaults import ModelDefaults, PredictionType
from lora_service.models.families.family import Config, Family, TargetNames

if TYPE_CHECKING:
    from torch import Tensor

    from lora_service.models.components import Components
    from lora_service.models.text_encoders import PromptEmbeds, TextEncoders


_VOCABULARY_ENTRY = "a</w>"
"""An entry of every vocabulary of CLIP's kind."""


_WORKING_WIDTHS = 12
"""Largest tensors of a UNet's block that live at once, in widths of its first level: the feed-forward has 8 of them."""


class StableDiffusion(Family):
    """A family of UNets with cross-attention to CLIP's hidden states.

    Attributes:
        text_width: the UNet's ``cross_attention_dim`` in the published models.
        pad_tokens: the pad token of each text encoder's tokenizer in single files; None: the tokenizer's own.
    """

    backbone = "unet"
    targets = TargetNames(
        attention=("to_q", "to_k", "to_v", "to_out.0"),
        gate=("ff.net.0.proj",),
        feed_forward=("ff.net.2",),
        projections=("proj_in", "proj_out"),
        convolutions=("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"),
        more_convolutions=("time_emb_proj",),
    )
    kept = ("time_embedding", "add_embedding", "class_embedding")
    learns_text = True
    drawing_step = 8  # one latent of the published bases; their UNets pad what does not halve evenly
    text_width: ClassVar[int]
    pad_tokens: ClassVar[Mapping[str, str | None]]

    def check(self, name: str, components: Components) -> None:
        from lora_service.models.components import check_channels, unusable

        unet, encoders = components.backbone, components.text_encoders
        check_channels(name, unet.config.in_channels, components.vae.config.latent_channels)
        for encoder, tokenizer in components.tokenizers.items():
            if _VOCABULARY_ENTRY not in tokenizer.get_vocab():
                tokenizer_name = encoder.replace("text_encoder", "tokenizer")
                raise unusable(name, f"has a {tokenizer_name} without a vocabulary", code="incomplete_model")
        encoder_width = sum(encoder.config.hidden_size for encoder in encoders.values())
        if encoder_width != unet.config.cross_attention_dim:
            reads = unet.config.cross_attention_dim
            reason = f"has text encoders of width {encoder_width} and a UNet that reads {reads}"
            raise unusable(name, reason, code="incomplete_model")

    def text_encoders(self, components: Components) -> TextEncoders:
        from lora_service.models.clip_text_encoders import ClipTextEncoders

        return ClipTextEncoders(
            components.text_encoders,
            components.tokenizers,
            zeros_for_empty_prompt=bool(components.pipeline_config.get("force_zeros_for_empty_prompt")),
        )

    def predict(
        self, backbone: Any, noisy: Tensor, timesteps: Tensor, text: PromptEmbeds, sizes: Tensor | None
    ) -> Tensor:
        prediction: Tensor = backbone(noisy.to(backbone.dtype), timesteps, text.states).sample
        return prediction

    def pipeline_options(self, pipeline: Config) -> dict[str, Any]:
        none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return {**super().pipeline_options(pipeline), **none}

    def loading_options(self) -> dict[str, Any]:
        return {"safety_checker": None, "requires_safety_checker": False}

    def scheduler_config(self, name: str, config: Config, defaults: ModelDefaults | None) -> dict[str, Any]:
        from lora_service.models.components import unusable

        scheduler_config = dict(config)
        if defaults and defaults.prediction_type:
            scheduler_config["prediction_type"] = defaults.prediction_type
        if defaults and defaults.zero_terminal_snr is not None:
            scheduler_config["rescale_betas_zero_snr"] = defaults.zero_terminal_snr
        prediction_type, supported = scheduler_config.get("prediction_type", "epsilon"), get_args(PredictionType)
        if prediction_type not in supported:
            reason = f"has the prediction type {prediction_type!r} and not {' or '.join(supported)}"
            raise unusable(name, reason, code="unsupported_prediction")
        return scheduler_config

    def drawing_bytes(self, backbone: Any, height: int, width: int) -> float:
        """Return the skips, and the largest tensors of a block that live at once, in widths of the first level."""
        config = backbone.config
        layers = config.layers_per_block
        skips = sum(
            ((layers if isinstance(layers, int) else layers[level]) + 1) * channels / 4**level
            for level, channels in enumerate(config.block_out_channels)
        )
        widths = skips + _WORKING_WIDTHS * config.block_out_channels[0]
        return float(height * width * widths * backbone.dtype.itemsize)

    def is_inpainting(self, vae: Any, backbone: Any) -> bool:
        return bool(backbone.config.in_channels != vae.config.latent_channels)

    def size_step(self, vae: Any, backbone: Any) -> int:
        """Return the VAE's downsampling times the UNet's."""
        return int(self.latent_factor(vae) * 2 ** (len(backbone.config.block_out_channels) - 1))

    def matches(self, backbone: Config) -> bool:
        return backbone.get("cross_attention_dim") == self.text_width
