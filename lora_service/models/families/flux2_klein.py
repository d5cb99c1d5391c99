"""FLUX.2 klein: a transformer of 4 or 9 billion weights, its text encoder Qwen3 (https://bfl.ai/models/flux-2-klein)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from lora_service.models.defaults import ModelDefaults, RegisteredBase
from lora_service.models.families.family import Bases, Config, Pipelines, TargetNames
from lora_service.models.families.flow import FLOW_DEFAULTS, SCHEDULER, FlowFamily, coordinates

if TYPE_CHECKING:
    from torch import Tensor

    from lora_service.models.components import Components
    from lora_service.models.text_encoders import PromptEmbeds, TextEncoders

_TEXT_LAYERS = (9, 18, 27)
"""Layers of Qwen3 whose states are the embeds, as in diffusers' pipeline."""
_PACKED = 2

KLEIN = replace(
    FLOW_DEFAULTS,
    title="FLUX.2 klein base 4B",
    architecture="flux-2-klein",
    version="flux2_klein",
    guidance_scale=4.0,
    num_inference_steps=50,
    draws_with="klein-distilled",
)
"""The rate is that of diffusers' training example; guidance and steps are the model card's."""
KLEIN_DISTILLED = replace(
    KLEIN,
    title="FLUX.2 klein 4B",
    guidance_scale=1.0,
    num_inference_steps=4,
    draws_with="",
    trains_on="klein",
)


class Flux2Klein(FlowFamily):
    """Latents are patches of 2 × 2 of the VAE's, normalized per channel by the statistics of its batch norm."""

    name = "flux2-klein"
    title = "FLUX.2 klein"
    pipelines: ClassVar[Pipelines] = {"text2img": "Flux2KleinPipeline"}
    bases: ClassVar[Bases] = {
        "klein": RegisteredBase("black-forest-labs/FLUX.2-klein-base-4B", KLEIN, "Apache 2.0"),
        "klein-distilled": RegisteredBase("black-forest-labs/FLUX.2-klein-4B", KLEIN_DISTILLED, "Apache 2.0"),
    }
    targets = TargetNames(
        attention=(
            *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
            *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
            *("attn.to_qkv_mlp_proj", "attn.to_out"),
        ),
        gate=("ff.linear_in", "ff_context.linear_in"),
        feed_forward=("ff.linear_out", "ff_context.linear_out"),
        blocks=("transformer_blocks", "single_transformer_blocks"),
    )
    file_keys = ("single_stream_modulation.lin.weight", "single_stream_modulation.linear.weight")
    kept = ("time_guidance_embed", "x_embedder", "context_embedder", "norm_out", "proj_out")
    imports = (
        f"diffusers:Flux2KleinPipeline Flux2Transformer2DModel AutoencoderKLFlux2 {SCHEDULER}",
        "transformers:Qwen3ForCausalLM Qwen2Tokenizer Qwen2TokenizerFast",
        "lora_service.models.chat_text_encoder",
    )
    patch = 1

    def defaults(self, scheduler: Config, pipeline: Config) -> ModelDefaults:
        return KLEIN_DISTILLED if pipeline.get("is_distilled") else KLEIN

    def text_encoders(self, components: Components) -> TextEncoders:
        from lora_service.models.chat_text_encoder import ChatTextEncoder

        return ChatTextEncoder(components.text_encoders, components.tokenizers, layers=_TEXT_LAYERS, keeps_padding=True)

    def predict(
        self, backbone: Any, noisy: Tensor, timesteps: Tensor, text: PromptEmbeds, sizes: Tensor | None
    ) -> Tensor:
        height, width = noisy.shape[-2:]
        texts = text.states.shape[1]
        prediction = backbone(
            hidden_states=self.pack(noisy.to(backbone.dtype)),
            timestep=timesteps.to(backbone.dtype),
            guidance=None,
            encoder_hidden_states=text.states.to(backbone.dtype),
            txt_ids=coordinates(1, 1, 1, texts, noisy).expand(len(noisy), -1, -1),
            img_ids=coordinates(1, height, width, 1, noisy).expand(len(noisy), -1, -1),
            return_dict=False,
        )[0]
        return self.unpack(prediction, height, width)

    def pipeline_options(self, pipeline: Config) -> dict[str, Any]:
        return {**super().pipeline_options(pipeline), "is_distilled": bool(pipeline.get("is_distilled"))}

    def takes_guidance(self, backbone: Any, pipeline: Config) -> bool:
        return not pipeline.get("is_distilled")

    def latent_factor(self, vae: Any) -> int:
        return super().latent_factor(vae) * _PACKED

    def to_backbone(self, vae: Any, latents: Tensor) -> Tensor:
        patches = _to_patches(latents)
        mean, std = _statistics(vae, patches)
        return (patches - mean) / std

    def deviation_to_backbone(self, vae: Any, deviation: Tensor) -> Tensor:
        patches = _to_patches(deviation)
        return patches / _statistics(vae, patches)[1]

    def to_vae(self, vae: Any, latents: Tensor) -> Tensor:
        mean, std = _statistics(vae, latents)
        return _from_patches(latents * std + mean)

    def pack(self, latents: Tensor) -> Tensor:
        return latents.flatten(2).transpose(1, 2)

    def unpack(self, packed: Tensor, height: int, width: int) -> Tensor:
        return packed.transpose(1, 2).unflatten(2, (height, width))

    def log_shift(self, scheduler: Config, positions: int, steps: int) -> float:
        from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

        return float(compute_empirical_mu(positions, steps))


def _to_patches(latents: Tensor) -> Tensor:
    """Return ``(b, c, h, w)`` as ``(b, 4c, h / 2, w / 2)``."""
    from torch.nn.functional import pixel_unshuffle

    return pixel_unshuffle(latents, _PACKED)


def _from_patches(patches: Tensor) -> Tensor:
    from torch.nn.functional import pixel_shuffle

    return pixel_shuffle(patches, _PACKED)


def _statistics(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel of patches, ``(1, 4c, 1, 1)``."""
    norm = vae.bn
    std = (norm.running_var + vae.config.batch_norm_eps).sqrt()
    mean, deviation = (each.view(1, -1, 1, 1).to(like) for each in (norm.running_mean, std))
    return mean, deviation


FLUX2_KLEIN = Flux2Klein()
