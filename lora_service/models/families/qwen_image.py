"""Qwen-Image: a transformer of 20 billion weights, its text encoder Qwen2.5-VL 7B (https://arxiv.org/abs/2508.02324)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from lora_service.models.defaults import ModelDefaults, RegisteredBase
from lora_service.models.families.family import Bases, Config, Pipelines, TargetNames
from lora_service.models.families.flow import FLOW_DEFAULTS, SCHEDULER
from lora_service.models.families.qwen_latents import QwenLatentsFamily

if TYPE_CHECKING:
    from torch import Tensor

    from lora_service.models.components import Components
    from lora_service.models.text_encoders import PromptEmbeds, TextEncoders

_TEXT_POSITIONS = 1024

QWEN = replace(
    FLOW_DEFAULTS,
    title="Qwen-Image",
    architecture="qwen-image",
    version="qwen_image",
    guidance_scale=4.0,
    num_inference_steps=50,
)
"""Steps and guidance are the model card's; the rate is that of diffusers' training example."""


class QwenImage(QwenLatentsFamily):
    """Guidance is its pipeline's ``true_cfg_scale``, which keeps the length of the prediction, and is off at 1."""

    name = "qwen-image"
    title = "Qwen-Image"
    pipelines: ClassVar[Pipelines] = {"text2img": "QwenImagePipeline"}
    bases: ClassVar[Bases] = {"qwen-image": RegisteredBase("Qwen/Qwen-Image", QWEN, "Apache 2.0")}
    targets = TargetNames(
        attention=(
            *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
            *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
        ),
        gate=("img_mlp.net.0.proj", "txt_mlp.net.0.proj"),
        feed_forward=("img_mlp.net.2", "txt_mlp.net.2"),
        blocks=("transformer_blocks",),
    )
    imports = (
        f"diffusers:QwenImagePipeline QwenImageTransformer2DModel AutoencoderKLQwenImage {SCHEDULER}",
        "transformers:Qwen2_5_VLForConditionalGeneration Qwen2Tokenizer Qwen2TokenizerFast",
        "lora_service.models.template_text_encoder",
    )
    file_keys = ("transformer_blocks.0.img_mod.1.weight",)
    kept = ("time_text_embed", "img_in", "txt_in", "norm_out", "proj_out")

    def defaults(self, scheduler: Config, pipeline: Config) -> ModelDefaults:
        return QWEN

    def text_encoders(self, components: Components) -> TextEncoders:
        from lora_service.models.template_text_encoder import TemplateTextEncoder

        return TemplateTextEncoder(components.text_encoders, components.tokenizers, layers=(-1,), limit=_TEXT_POSITIONS)

    def guidance(self, scale: float) -> dict[str, Any]:
        return {"true_cfg_scale": scale}

    def predict(
        self, backbone: Any, noisy: Tensor, timesteps: Tensor, text: PromptEmbeds, sizes: Tensor | None
    ) -> Tensor:
        from lora_service.models.template_text_encoder import trimmed

        height, width = noisy.shape[-2:]
        text = trimmed(text)
        prediction = backbone(
            hidden_states=self.pack(noisy.to(backbone.dtype)),
            timestep=timesteps.to(backbone.dtype),
            encoder_hidden_states=text.states.to(backbone.dtype),
            encoder_hidden_states_mask=text.mask,
            img_shapes=[[(1, height // self.patch, width // self.patch)]] * len(noisy),
            return_dict=False,
        )[0]
        return self.unpack(prediction, height, width)


QWEN_IMAGE = QwenImage()
