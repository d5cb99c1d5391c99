"""Z-Image: a transformer of 6 billion weights, its text encoder Qwen3 4B (https://arxiv.org/abs/2511.22699)."""

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

_TURBO_SHIFT = 3.0
"""The shift in the scheduler config of the distilled model; the base's is 6. Nothing else tells them apart."""

ZIMAGE_BASE = replace(
    FLOW_DEFAULTS,
    title="Z-Image",
    architecture="z-image",
    version="zimage",
    guidance_scale=4.0,
    num_inference_steps=50,
    draws_with="zimage-turbo",
)
"""The rate is that of diffusers' training example; guidance and steps are the model card's."""
ZIMAGE_TURBO = replace(
    ZIMAGE_BASE,
    title="Z-Image-Turbo",
    guidance_scale=0.0,
    num_inference_steps=9,
    draws_with="",
    trains_on="zimage",
)


class ZImage(FlowFamily):
    """Its time runs the other way, from 0, noise, to 1, and it predicts ``x − ε``."""

    name = "zimage"
    title = "Z-Image"
    pipelines: ClassVar[Pipelines] = {"text2img": "ZImagePipeline"}
    bases: ClassVar[Bases] = {
        "zimage": RegisteredBase("Tongyi-MAI/Z-Image", ZIMAGE_BASE, "Apache 2.0"),
        "zimage-turbo": RegisteredBase("Tongyi-MAI/Z-Image-Turbo", ZIMAGE_TURBO, "Apache 2.0"),
    }
    targets = TargetNames(
        attention=("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0"),
        gate=("feed_forward.w1", "feed_forward.w3"),
        feed_forward=("feed_forward.w2",),
        blocks=("layers", "noise_refiner", "context_refiner"),
    )
    imports = (
        f"diffusers:ZImagePipeline ZImageTransformer2DModel {SCHEDULER}",
        "transformers:Qwen3Model Qwen2Tokenizer Qwen2TokenizerFast",
        "lora_service.models.chat_text_encoder",
    )
    file_keys = ("cap_pad_token",)
    ragged = ("cap_embedder",)
    kept = ("t_embedder", "cap_embedder", "all_x_embedder", "all_final_layer")

    def defaults(self, scheduler: Config, pipeline: Config) -> ModelDefaults:
        return ZIMAGE_TURBO if scheduler.get("shift") == _TURBO_SHIFT else ZIMAGE_BASE

    def guides(self, scale: float) -> bool:
        return scale > 0  # of cond + scale · (cond − uncond)

    def text_width(self, backbone: Any) -> int:
        return int(backbone.config.cap_feat_dim)

    def text_encoders(self, components: Components) -> TextEncoders:
        from lora_service.models.chat_text_encoder import ChatTextEncoder

        return ChatTextEncoder(components.text_encoders, components.tokenizers, layers=(-2,), thinking=True)

    def predict(
        self, backbone: Any, noisy: Tensor, timesteps: Tensor, text: PromptEmbeds, sizes: Tensor | None
    ) -> Tensor:
        import torch

        from lora_service.models.chat_text_encoder import ragged

        frames = noisy.to(backbone.dtype).unsqueeze(2)  # its pictures are films of one frame
        prompts = [states.to(backbone.dtype) for states in ragged(text)]
        predictions = backbone(list(frames.unbind(0)), 1 - timesteps, prompts, return_dict=False)[0]
        return -torch.stack(list(predictions)).squeeze(2)


ZIMAGE = ZImage()
