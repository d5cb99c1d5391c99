"""Krea 2: a transformer of 13 billion weights, its text encoder Qwen3-VL 4B (https://github.com/krea-ai/krea-2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from lora_service.models.defaults import ModelDefaults, RegisteredBase
from lora_service.models.families.family import Bases, Config, Pipelines, TargetNames
from lora_service.models.families.flow import FLOW_DEFAULTS, SCHEDULER, coordinates
from lora_service.models.families.qwen_latents import QwenLatentsFamily

if TYPE_CHECKING:
    from torch import Tensor

    from lora_service.models.components import Components
    from lora_service.models.text_encoders import PromptEmbeds, TextEncoders

_TEXT_LAYERS = (2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35)
_DISTILLED_SHIFT = 1.15
_LICENCE = "Krea 2 Community License"

KREA2_RAW = replace(
    FLOW_DEFAULTS,
    title="Krea 2 Raw",
    architecture="krea-2",
    version="krea2",
    guidance_scale=3.5,
    num_inference_steps=52,
    draws_with="krea2-turbo",
)
"""Steps and guidance are the model card's; the rate is that of the other families, not tuned on real weights."""
KREA2_TURBO = replace(
    KREA2_RAW, title="Krea 2 Turbo", guidance_scale=0.0, num_inference_steps=8, draws_with="", trains_on="krea2"
)


class Krea2(QwenLatentsFamily):
    """Its text is a stack of states of several layers; guidance adds to the prediction, and is off at 0."""

    name = "krea2"
    title = "Krea 2"
    pipelines: ClassVar[Pipelines] = {"text2img": "Krea2Pipeline"}
    bases: ClassVar[Bases] = {
        "krea2": RegisteredBase("krea/Krea-2-Raw", KREA2_RAW, _LICENCE),
        "krea2-turbo": RegisteredBase("krea/Krea-2-Turbo", KREA2_TURBO, _LICENCE),
    }
    targets = TargetNames(
        attention=("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        gate=("ff.gate", "ff.up"),
        feed_forward=("ff.down",),
        blocks=("transformer_blocks",),
    )
    imports = (
        f"diffusers:Krea2Pipeline Krea2Transformer2DModel AutoencoderKLQwenImage {SCHEDULER}",
        "transformers:Qwen3VLModel Qwen2Tokenizer Qwen2TokenizerFast",
        "lora_service.models.template_text_encoder",
    )
    file_keys = ("txtfusion.projector.weight", "text_fusion.projector.weight")
    kept = ("img_in", "time_embed", "time_mod_proj", "text_fusion", "txt_in", "final_layer")

    def defaults(self, scheduler: Config, pipeline: Config) -> ModelDefaults:
        return KREA2_TURBO if pipeline.get("is_distilled") else KREA2_RAW

    def text_width(self, backbone: Any) -> int:
        return int(backbone.config.text_hidden_dim * backbone.config.num_text_layers)

    def text_encoders(self, components: Components) -> TextEncoders:
        from lora_service.models.template_text_encoder import TemplateTextEncoder

        layers = components.pipeline_config.get("text_encoder_select_layers") or _TEXT_LAYERS
        return TemplateTextEncoder(
            components.text_encoders,
            components.tokenizers,
            layers=tuple(layers),
            pads_before_suffix=True,
            stacks_layers=True,
        )

    def predict(
        self, backbone: Any, noisy: Tensor, timesteps: Tensor, text: PromptEmbeds, sizes: Tensor | None
    ) -> Tensor:
        import torch

        height, width = noisy.shape[-2:]
        grid = coordinates(1, height // self.patch, width // self.patch, 1, noisy)[:, :3]
        places = torch.cat([grid.new_zeros(text.states.shape[1], 3), grid]).float()
        prediction = backbone(
            hidden_states=self.pack(noisy.to(backbone.dtype)),
            encoder_hidden_states=text.states.to(backbone.dtype),
            timestep=timesteps.to(backbone.dtype),
            position_ids=places,
            encoder_attention_mask=text.mask,
            return_dict=False,
        )[0]
        return self.unpack(prediction, height, width)

    def pipeline_options(self, pipeline: Config) -> dict[str, Any]:
        return {**super().pipeline_options(pipeline), "is_distilled": bool(pipeline.get("is_distilled"))}

    def guides(self, scale: float) -> bool:
        return scale > 0  # of cond + scale · (cond − uncond)

    def text_blocks(self, backbone: Any) -> Mapping[str, int]:
        """Return the blocks of the fusion of the text's layers, and those behind it."""
        return {"text_fusion.layerwise_blocks": backbone.config.num_text_layers, "text_fusion.refiner_blocks": 1}

    def log_shift(self, scheduler: Config, positions: int, steps: int) -> float:
        if scheduler.get("is_distilled"):
            return _DISTILLED_SHIFT
        return super().log_shift({"max_image_seq_len": 6400, **scheduler}, positions, steps)


KREA2 = Krea2()
