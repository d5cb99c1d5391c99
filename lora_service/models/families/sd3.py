"""Stable Diffusion 3 and 3.5: transformers of 2 to 8 billion weights, their text encoders two of CLIP's and T5.

https://arxiv.org/abs/2403.03206
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from lora_service.models.defaults import ModelDefaults, RegisteredBase
from lora_service.models.families.family import Bases, Config, Pipelines, TargetNames
from lora_service.models.families.flow import FLOW_DEFAULTS, SCHEDULER, FlowFamily

if TYPE_CHECKING:
    from torch import Tensor

    from lora_service.models.components import Components
    from lora_service.models.text_encoders import PromptEmbeds, TextEncoders

_TIMESTEPS = 1000
_LICENCE = "Stability AI Community License"
_ENCODERS = ("", "_2", "_3")

SD35 = replace(
    FLOW_DEFAULTS,
    title="Stable Diffusion 3.5",
    architecture="stable-diffusion-v3.5-medium",
    version="sd3",
    learning_rate_ti=3e-4,
    guidance_scale=4.5,
    num_inference_steps=40,
)
"""The rate of the tokens is XL's, which has the same two of CLIP's encoders, and that of the transformer diffusers'
training example's. In stage 2 CLIP does not learn unless ``learning_rate_text`` says so, as in that example."""
SD35_MEDIUM = replace(SD35, title="Stable Diffusion 3.5 Medium")
SD35_LARGE = replace(
    SD35,
    title="Stable Diffusion 3.5 Large",
    architecture="stable-diffusion-v3.5-large",
    guidance_scale=3.5,
    num_inference_steps=28,
    draws_with="sd35-large-turbo",
)
SD35_LARGE_TURBO = replace(
    SD35_LARGE,
    title="Stable Diffusion 3.5 Large Turbo",
    guidance_scale=0.0,
    num_inference_steps=4,
    draws_with="",
    trains_on="sd35-large",
)
SD3_MEDIUM = replace(
    SD35,
    title="Stable Diffusion 3 Medium",
    architecture="stable-diffusion-v3-medium",
    guidance_scale=7.0,
    num_inference_steps=28,
)
"""Guidance and steps are the model cards'."""


class StableDiffusion3(FlowFamily):
    """CLIP's encoders learn tokens and LoRA layers as XL's do; T5 is frozen, and may be left out."""

    name = "sd3"
    title = "Stable Diffusion 3"
    pipelines: ClassVar[Pipelines] = {"text2img": "StableDiffusion3Pipeline"}
    bases: ClassVar[Bases] = {
        "sd35-medium": RegisteredBase("stabilityai/stable-diffusion-3.5-medium", SD35_MEDIUM, _LICENCE),
        "sd35-large": RegisteredBase("stabilityai/stable-diffusion-3.5-large", SD35_LARGE, _LICENCE),
        "sd35-large-turbo": RegisteredBase("stabilityai/stable-diffusion-3.5-large-turbo", SD35_LARGE_TURBO, _LICENCE),
        "sd3-medium": RegisteredBase("stabilityai/stable-diffusion-3-medium-diffusers", SD3_MEDIUM, _LICENCE),
    }
    targets = TargetNames(
        attention=(
            *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
            *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
            *("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"),
        ),
        gate=("ff.net.0.proj", "ff_context.net.0.proj"),
        feed_forward=("ff.net.2", "ff_context.net.2"),
        blocks=("transformer_blocks",),
    )
    kept = ("pos_embed", "time_text_embed", "context_embedder", "norm_out", "proj_out")
    learns_text = True
    caption_tokens = 255
    own_clip_skip = 2
    file_keys = ("pos_embed.pos_embed", "joint_blocks.0.context_block.adaLN_modulation.1.weight")
    repeats_prompts = False
    imports = (
        f"diffusers:StableDiffusion3Pipeline SD3Transformer2DModel {SCHEDULER}",
        "transformers:CLIPTextModelWithProjection CLIPTokenizer T5EncoderModel T5TokenizerFast",
        "lora_service.models.sd3_text_encoders",
    )

    def defaults(self, scheduler: Config, pipeline: Config) -> ModelDefaults:
        return SD35

    def check(self, name: str, components: Components) -> None:
        """Check that the states of CLIP fit into those that the transformer reads, and T5's are as wide."""
        from lora_service.models.components import unusable
        from lora_service.models.sd3_text_encoders import T5

        encoders, reads = components.text_encoders, self.text_width(components.backbone)
        for part in ("text_encoder", "text_encoder_2"):
            if part not in encoders:
                reason = f"has no {part}; of its text encoders text_encoder_3 alone, T5, may be left out"
                raise unusable(name, reason, code="incomplete_model")
        width = sum(each.config.hidden_size for part, each in encoders.items() if part != T5)
        pooled = sum(each.config.projection_dim for part, each in encoders.items() if part != T5)
        t5 = encoders[T5].config.d_model if T5 in encoders else reads
        if width > reads or t5 != reads or pooled != components.backbone.config.pooled_projection_dim:
            reason = (
                f"has text encoders whose states are {width} and {t5} wide, with {pooled} pooled, and a transformer "
                f"that reads {reads}, with {components.backbone.config.pooled_projection_dim} pooled"
            )
            raise unusable(name, reason, code="incomplete_model")

    def text_encoders(self, components: Components) -> TextEncoders:
        from lora_service.models.sd3_text_encoders import Sd3TextEncoders

        width = self.text_width(components.backbone)
        return Sd3TextEncoders(components.text_encoders, components.tokenizers, state_width=width)

    def longest_side(self, vae: Any, backbone: Any) -> int | None:
        """Return the pixels that there are position embeddings for."""
        return int(backbone.config.pos_embed_max_size) * self.size_step(vae, backbone)

    def pipeline_options(self, pipeline: Config) -> dict[str, Any]:
        return {f"{part}{end}": None for part in ("text_encoder", "tokenizer") for end in _ENCODERS}

    def predict(
        self, backbone: Any, noisy: Tensor, timesteps: Tensor, text: PromptEmbeds, sizes: Tensor | None
    ) -> Tensor:
        assert text.pooled is not None
        prediction: Tensor = backbone(
            hidden_states=noisy.to(backbone.dtype),
            timestep=timesteps * _TIMESTEPS,
            encoder_hidden_states=text.states.to(backbone.dtype),
            pooled_projections=text.pooled.to(backbone.dtype),
            return_dict=False,
        )[0]
        return prediction


SD3 = StableDiffusion3()
