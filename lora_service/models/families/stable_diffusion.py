"""What Stable Diffusion 1.x, 2.x and XL share: a UNet, CLIP's text encoders, and a VAE of eight pixels a latent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from lora_service.models.families.family import Config, Family, TargetNames

if TYPE_CHECKING:
    from torch import Tensor

    from lora_service.models.components import Components
    from lora_service.models.text_encoders import PromptEmbeds, TextEncoders


_VOCABULARY_ENTRY = "a</w>"
"""An entry of every vocabulary of CLIP's kind."""


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
            zeros_for_empty_prompt=components.zeros_for_empty_prompt,
        )

    def predict(
        self, backbone: Any, noisy: Tensor, timesteps: Tensor, text: PromptEmbeds, sizes: Tensor | None
    ) -> Tensor:
        prediction: Tensor = backbone(noisy.to(backbone.dtype), timesteps, text.states).sample
        return prediction

    def pipeline_options(self) -> dict[str, Any]:
        none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return {**super().pipeline_options(), **none}

    def loading_options(self) -> dict[str, Any]:
        return {"safety_checker": None, "requires_safety_checker": False}

    def is_inpainting(self, vae: Any, backbone: Any) -> bool:
        return bool(backbone.config.in_channels != vae.config.latent_channels)

    def size_step(self, vae: Any, backbone: Any) -> int:
        """Return the VAE's downsampling times the UNet's."""
        return int(self.latent_factor(vae) * 2 ** (len(backbone.config.block_out_channels) - 1))

    def matches(self, backbone: Config) -> bool:
        return backbone.get("cross_attention_dim") == self.text_width
