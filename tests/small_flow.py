"""Tiny random bases of flow matching, of diffusers' own classes, for tests of training and generation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    ChromaTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    Krea2Transformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    ZImageTransformer2DModel,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLModel,
    T5Config,
    T5EncoderModel,
)

from lora_service.models.components import Components
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.loading import assemble
from lora_service.models.registry import FAMILIES
from tests.small_models import small_models, small_text_encoder, small_tokenizer

FLOW_FAMILIES = ("flux2-klein", "zimage", "krea2", "chroma", "flux1", "qwen-image", "sd3")
FROZEN_TEXT = tuple(name for name in FLOW_FAMILIES if name != "sd3")
"""Those whose text encoders do not learn."""
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""A chat template with Qwen3's tokens."""
_WIDTH = 16


def small_flow_base(family: str, **defaults: Any) -> DiffusionBase:
    """Make a base of one of ``FLOW_FAMILIES``; the same every time."""
    chosen = next(each for each in FAMILIES if each.name == family)
    components = small_flow_components(family)
    own = chosen.defaults(components.scheduler_config, components.pipeline_config)
    small = replace(own, **{"resolution": 32, "bucket_step": 16, "num_inference_steps": 2, **defaults})
    return assemble("small", components, small, torch.device("cpu"), torch.float32)


def small_flow_components(family: str) -> Components:
    """Make the components of :func:`small_flow_base`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer, vae, made, scheduler = _MAKERS[family]()
        encoders = made if isinstance(made, dict) else {"text_encoder": made}
        for model in (transformer, vae, *encoders.values()):
            for parameter in model.parameters():  # also what is made of zeros or not set
                if not parameter.isfinite().all() or parameter.abs().max() == 0:
                    torch.nn.init.normal_(parameter, std=0.1)
    return Components(
        family=next(each for each in FAMILIES if each.name == family),
        backbone=transformer.eval(),
        vae=vae.eval(),
        text_encoders={name: each.eval() for name, each in encoders.items()},
        tokenizers={name: _tokenizer_of(each) for name, each in encoders.items()},
        scheduler_config=dict(scheduler.config),
        pipeline_config=_PIPELINE_CONFIGS.get(family, {}),
    )


def flow_pipeline_of(base: DiffusionBase, **more: None) -> Any:
    """Make diffusers' own pipeline of the base's models, without those of ``more``."""
    config = _PIPELINE_CONFIGS.get(base.family.name, {})
    pipeline = getattr(diffusers, base.family.pipelines["text2img"])(
        **config,
        scheduler=FlowMatchEulerDiscreteScheduler.from_config(base.scheduler_config),
        vae=base.vae,
        transformer=base.backbone,
        **base.text.encoders,
        **{name.replace("text_encoder", "tokenizer"): each for name, each in base.text.tokenizers.items()},
        **more,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """Make a byte-level tokenizer with Qwen3's special tokens and a template."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    entries = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *specials]
    tokenizer = Tokenizer(models.BPE({entry: number for number, entry in enumerate(entries)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=specials[0], eos_token=specials[2], chat_template=_TEMPLATE
    )


def _tokenizer_of(encoder: Any) -> Any:
    return small_tokenizer() if isinstance(encoder.config, CLIPTextConfig) else chat_tokenizer()


def _qwen3(layers: int) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=320,
        hidden_size=_WIDTH,
        intermediate_size=2 * _WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=1024,
    )


def _klein() -> tuple[Any, Any, Any, Any]:
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * _WIDTH,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=32,
    )
    vae.bn.running_mean.normal_(std=0.2)
    vae.bn.running_var.uniform_(0.5, 2)
    return transformer, vae, Qwen3ForCausalLM(_qwen3(28)), FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)


def _zimage() -> tuple[Any, Any, Any, Any]:
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=_WIDTH,
        axes_dims=[4, 6, 6],
        axes_lens=[1024, 64, 64],
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        sample_size=32,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return transformer, vae, Qwen3Model(_qwen3(3)), FlowMatchEulerDiscreteScheduler(shift=6.0)


def _qwen_vae() -> Any:
    return AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.8, 1.2, 1.0],
    )  # fmt: skip


def _krea2() -> tuple[Any, Any, Any, Any]:
    transformer = Krea2Transformer2DModel(
        in_channels=16, num_layers=2, attention_head_dim=8, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=32, timestep_embed_dim=16, text_hidden_dim=_WIDTH, num_text_layers=2,
        text_num_attention_heads=2, text_num_key_value_heads=2, text_intermediate_size=32,
        num_layerwise_text_blocks=1, num_refiner_text_blocks=1, axes_dims_rope=(4, 2, 2),
    )  # fmt: skip
    text = _qwen3(3).to_dict() | {"rope_scaling": {"rope_type": "default", "mrope_section": [2, 1, 1]}}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": _WIDTH}
    encoder = Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=vision | {"deepstack_visual_indexes": [0]}))
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, max_image_seq_len=6400)
    return transformer, _qwen_vae(), encoder, scheduler


def _qwen_image() -> tuple[Any, Any, Any, Any]:
    transformer = QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=_WIDTH, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    text = {
        "vocab_size": 320, "hidden_size": _WIDTH, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 2048,
        "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [2, 1, 1]},
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": _WIDTH}
    encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))
    return transformer, _qwen_vae(), encoder, FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)


def _t5(width: int = _WIDTH) -> T5EncoderModel:
    return T5EncoderModel(T5Config(vocab_size=320, d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2))


def _flux1() -> tuple[Any, Any, Any, Any]:
    _, vae, _, scheduler = _zimage()
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=_WIDTH, pooled_projection_dim=32, guidance_embeds=True, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    clip = small_models("sd1").components["text_encoder"]
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return transformer, vae, {"text_encoder": clip, "text_encoder_2": _t5()}, scheduler


def _chroma() -> tuple[Any, Any, Any, Any]:
    _, vae, _, _ = _zimage()
    transformer = ChromaTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=_WIDTH, axes_dims_rope=(4, 6, 6), approximator_num_channels=16,
        approximator_hidden_dim=32, approximator_layers=1,
    )  # fmt: skip
    return transformer, vae, _t5(), FlowMatchEulerDiscreteScheduler(shift=1.5)


def _sd3() -> tuple[Any, Any, Any, Any]:
    _, vae, _, scheduler = _zimage()
    transformer = SD3Transformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=96, caption_projection_dim=32, pooled_projection_dim=32, pos_embed_max_size=24,
        qk_norm="rms_norm", dual_attention_layers=(0,),
    )  # fmt: skip
    encoders = {
        "text_encoder": small_text_encoder(CLIPTextModelWithProjection, 32),
        "text_encoder_2": small_text_encoder(CLIPTextModelWithProjection, 48),
        "text_encoder_3": _t5(96),
    }
    return transformer, vae, encoders, scheduler


_PIPELINE_CONFIGS: dict[str, dict[str, Any]] = {"krea2": {"text_encoder_select_layers": (1, 3)}}
_MAKERS = {
    "flux2-klein": _klein,
    "zimage": _zimage,
    "krea2": _krea2,
    "chroma": _chroma,
    "flux1": _flux1,
    "qwen-image": _qwen_image,
    "sd3": _sd3,
}
