"""Chroma: FLUX.1 schnell without guidance as an input, of 9 billion weights.

https://huggingface.co/lodestones/Chroma1-HD
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from lora_service.models.defaults import ModelDefaults, RegisteredBase
from lora_service.models.families.family import Bases, Config, Pipelines
from lora_service.models.families.flow import FLOW_DEFAULTS, SCHEDULER, PackedFlowFamily
from lora_service.models.families.flux1 import FLUX1, picture_ids

if TYPE_CHECKING:
    from torch import Tensor

    from lora_service.models.components import Components
    from lora_service.models.text_encoders import PromptEmbeds, TextEncoders

CHROMA_HD = replace(
    FLOW_DEFAULTS,
    title="Chroma1-HD",
    architecture="chroma",
    version="chroma",
    guidance_scale=3.0,
    num_inference_steps=40,
)
"""Steps and guidance are the model card's; the rate is that of FLUX.1's training example."""


class Chroma(PackedFlowFamily):
    """Its text encoder is T5 alone, of whose padding the first token is read."""

    name = "chroma"
    title = "Chroma"
    pipelines: ClassVar[Pipelines] = {"text2img": "ChromaPipeline"}
    bases: ClassVar[Bases] = {"chroma": RegisteredBase("lodestones/Chroma1-HD", CHROMA_HD, "Apache 2.0")}
    targets = FLUX1.targets
    imports = (
        f"diffusers:ChromaPipeline ChromaTransformer2DModel {SCHEDULER}",
        "transformers:T5EncoderModel T5Tokenizer T5TokenizerFast",
        "lora_service.models.t5_text_encoder",
    )
    repeats_prompts = False
    kept = ("distilled_guidance_layer", "x_embedder", "context_embedder", "norm_out", "proj_out")

    def defaults(self, scheduler: Config, pipeline: Config) -> ModelDefaults:
        return CHROMA_HD

    def text_encoders(self, components: Components) -> TextEncoders:
        from lora_service.models.t5_text_encoder import T5TextEncoder

        return T5TextEncoder(components.text_encoders, components.tokenizers, masks_padding=True)

    def predict(
        self, backbone: Any, noisy: Tensor, timesteps: Tensor, text: PromptEmbeds, sizes: Tensor | None
    ) -> Tensor:
        import torch

        height, width = noisy.shape[-2:]
        assert text.mask is not None
        # In the dtype of the states, and so added to the attention: that is how its pipeline has it.
        mask = text.mask.to(backbone.dtype)
        seen = torch.cat([mask, mask.new_ones(len(noisy), self.positions(height, width))], dim=1)
        prediction = backbone(
            hidden_states=self.pack(noisy.to(backbone.dtype)),
            timestep=timesteps.to(backbone.dtype),
            encoder_hidden_states=text.states.to(backbone.dtype),
            txt_ids=noisy.new_zeros(text.states.shape[1], 3),
            img_ids=picture_ids(noisy, self.patch),
            attention_mask=seen,
            return_dict=False,
        )[0]
        return self.unpack(prediction, height, width)


CHROMA = Chroma()
