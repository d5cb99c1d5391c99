"""FLUX.1: a transformer of 12 billion weights, its text encoders T5 and CLIP.

https://github.com/black-forest-labs/flux
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from lora_service.models.defaults import ModelDefaults, RegisteredBase
from lora_service.models.families.family import Bases, Config, Pipelines, TargetNames
from lora_service.models.families.flow import FLOW_DEFAULTS, SCHEDULER, PackedFlowFamily, coordinates

if TYPE_CHECKING:
    from torch import Tensor

    from lora_service.models.components import Components
    from lora_service.models.text_encoders import PromptEmbeds, TextEncoders

_TRAINING_GUIDANCE = 1.0
"""The guidance that the model with guidance as an input is trained at, as kohya's trainer has it."""

FLUX1_DEV = replace(
    FLOW_DEFAULTS,
    title="FLUX.1 dev",
    architecture="flux-1-dev",
    version="flux1",
    guidance_scale=3.5,
    num_inference_steps=50,
)
"""Steps and guidance are the model card's; the rate is that of diffusers' training example."""
FLUX1_SCHNELL = replace(
    FLUX1_DEV, title="FLUX.1 schnell", architecture="flux-1-schnell", guidance_scale=0.0, num_inference_steps=4
)


class Flux1(PackedFlowFamily):
    """The guidance scale is an input of the transformer of ``dev``; there is no negative prompt."""

    name = "flux1"
    title = "FLUX.1"
    pipelines: ClassVar[Pipelines] = {"text2img": "FluxPipeline"}
    bases: ClassVar[Bases] = {
        "flux-dev": RegisteredBase("black-forest-labs/FLUX.1-dev", FLUX1_DEV, "FLUX.1 [dev] Non-Commercial License"),
        "flux-schnell": RegisteredBase("black-forest-labs/FLUX.1-schnell", FLUX1_SCHNELL, "Apache 2.0"),
    }
    targets = TargetNames(
        attention=(
            *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
            *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
        ),
        gate=("ff.net.0.proj", "ff_context.net.0.proj", "proj_mlp"),
        feed_forward=("ff.net.2", "ff_context.net.2", "proj_out"),
        blocks=("transformer_blocks", "single_transformer_blocks"),
    )
    imports = (
        f"diffusers:FluxPipeline FluxTransformer2DModel {SCHEDULER}",
        "transformers:T5EncoderModel T5TokenizerFast",
        "lora_service.models.t5_text_encoder",
    )
    file_keys = ("double_blocks.0.img_mod.lin.weight", "single_transformer_blocks.0.norm.linear.weight")
    kept = ("time_text_embed", "x_embedder", "context_embedder", "norm_out", "proj_out")
    reads_negative_prompt = False

    def defaults(self, scheduler: Config, pipeline: Config) -> ModelDefaults:
        return FLUX1_DEV if scheduler.get("use_dynamic_shifting") else FLUX1_SCHNELL

    def text_encoders(self, components: Components) -> TextEncoders:
        from lora_service.models.t5_text_encoder import T5TextEncoder

        return T5TextEncoder(components.text_encoders, components.tokenizers, name="text_encoder_2")

    def pipeline_options(self, pipeline: Config) -> dict[str, Any]:
        return {**super().pipeline_options(pipeline), "text_encoder_2": None, "tokenizer_2": None}

    def takes_guidance(self, backbone: Any, pipeline: Config) -> bool:
        return bool(backbone.config.guidance_embeds)

    def predict(
        self, backbone: Any, noisy: Tensor, timesteps: Tensor, text: PromptEmbeds, sizes: Tensor | None
    ) -> Tensor:
        height, width = noisy.shape[-2:]
        guidance = timesteps.new_full((len(noisy),), _TRAINING_GUIDANCE) if backbone.config.guidance_embeds else None
        assert text.pooled is not None
        prediction = backbone(
            hidden_states=self.pack(noisy.to(backbone.dtype)),
            timestep=timesteps.to(backbone.dtype),
            guidance=guidance,
            pooled_projections=text.pooled.to(backbone.dtype),
            encoder_hidden_states=text.states.to(backbone.dtype),
            txt_ids=noisy.new_zeros(text.states.shape[1], 3),
            img_ids=picture_ids(noisy, self.patch),
            return_dict=False,
        )[0]
        return self.unpack(prediction, height, width)


def picture_ids(noisy: Tensor, patch: int) -> Tensor:
    """Return the coordinates of the patches of latents, ``(n, 3)``."""
    height, width = (side // patch for side in noisy.shape[-2:])
    return coordinates(1, height, width, 1, noisy)[:, :3].to(noisy.dtype)


FLUX1 = Flux1()
