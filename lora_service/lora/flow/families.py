"""The families of transformers: names of modules in the original models and in diffusers' classes, and sizes.

Sources: diffusers' conversions of whole checkpoints (loaders/single_file_utils.py) and of LoRAs
(loaders/lora_conversion_utils.py), and the names that ComfyUI takes (comfy/utils.py: flux_to_diffusers,
z_image_to_diffusers, krea2_to_diffusers, MMDIT_MAP_BLOCK).
"""

from __future__ import annotations

from lora_service.lora.flow.names import Blocks, TransformerFamily, Version

_FLUX_ATTENTION = {
    "img_attn.qkv": "attn.to_q attn.to_k attn.to_v",
    "img_attn.proj": "attn.to_out.0",
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.qkv": "attn.add_q_proj attn.add_k_proj attn.add_v_proj",
    "txt_attn.proj": "attn.to_add_out",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
    # The names that diffusers gives to projections it has fused itself.
    "attn.to_qkv": "attn.to_q attn.to_k attn.to_v",
    "attn.to_added_qkv": "attn.add_q_proj attn.add_k_proj attn.add_v_proj",
}
_FLUX_SINGLE_NORMS = {"norm.query_norm": "attn.norm_q", "norm.key_norm": "attn.norm_k"}
_FLUX_OUTSIDE = {"img_in": "x_embedder", "txt_in": "context_embedder", "final_layer.linear": "proj_out"}
_FLUX1_DOUBLE = {
    **_FLUX_ATTENTION,
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
}
_FLUX1_SINGLE = {
    "linear1": "attn.to_q attn.to_k attn.to_v proj_mlp",
    "linear1_qkv": "attn.to_q attn.to_k attn.to_v",  # XLabs'
    "linear2": "proj_out",
    **_FLUX_SINGLE_NORMS,
}
_FLUX1_SHARES = {"linear1": (1, 1, 1, 4)}
_FLUX1_ASPECTS = {
    "img_mlp.0": 4,
    "txt_mlp.0": 4,
    "img_mlp.2": 1 / 4,
    "txt_mlp.2": 1 / 4,
    "linear1": 7,
    "linear2": 1 / 5,
}
_FLUX1_DEPTH = {"transformer_blocks": 19, "single_transformer_blocks": 38}

FLUX1 = TransformerFamily(
    name="flux1",
    title="FLUX.1",
    blocks=(
        Blocks(
            "double_blocks",
            "transformer_blocks",
            {**_FLUX1_DOUBLE, "img_mod.lin": "norm1.linear", "txt_mod.lin": "norm1_context.linear"},
        ),
        Blocks("single_blocks", "single_transformer_blocks", {**_FLUX1_SINGLE, "modulation.lin": "norm.linear"}),
    ),
    outside={
        **_FLUX_OUTSIDE,
        "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
        "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
        "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
        "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
        "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
        "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
        "final_layer.adaLN_modulation.1": "norm_out.linear",
    },
    versions=(Version("FLUX.1", 3072, _FLUX1_DEPTH),),
    shares=_FLUX1_SHARES,
    swapped=("final_layer.adaLN_modulation.1",),
    aspects=_FLUX1_ASPECTS,
    header_names=("flux1", "flux-1"),
    writes_alpha=True,
)
CHROMA = TransformerFamily(
    name="chroma",
    title="Chroma",
    blocks=(
        Blocks("double_blocks", "transformer_blocks", _FLUX1_DOUBLE),
        Blocks("single_blocks", "single_transformer_blocks", _FLUX1_SINGLE),
        Blocks(
            "distilled_guidance_layer.layers",
            "distilled_guidance_layer.layers",
            {"in_layer": "linear_1", "out_layer": "linear_2"},
        ),
    ),
    outside={
        **_FLUX_OUTSIDE,
        "distilled_guidance_layer.in_proj": "distilled_guidance_layer.in_proj",
        "distilled_guidance_layer.out_proj": "distilled_guidance_layer.out_proj",
    },
    versions=(Version("Chroma", 3072, _FLUX1_DEPTH),),
    shares=_FLUX1_SHARES,
    aspects=_FLUX1_ASPECTS,
    header_names=("chroma",),
    writes_alpha=True,
)
FLUX2 = TransformerFamily(
    name="flux2-klein",
    title="FLUX.2",
    blocks=(
        Blocks(
            "double_blocks",
            "transformer_blocks",
            {
                **_FLUX_ATTENTION,
                "img_mlp.0": "ff.linear_in",
                "img_mlp.2": "ff.linear_out",
                "txt_mlp.0": "ff_context.linear_in",
                "txt_mlp.2": "ff_context.linear_out",
            },
            aliases=("sformer_blocks",),  # "transformer_blocks" without its first letters, as some exports have it
        ),
        Blocks(
            "single_blocks",
            "single_transformer_blocks",
            {"linear1": "attn.to_qkv_mlp_proj", "linear2": "attn.to_out", **_FLUX_SINGLE_NORMS},
        ),
    ),
    outside={
        **_FLUX_OUTSIDE,
        "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
        "time_in.out_layer": "time_guidance_embed.timestep_embedder.linear_2",
        "guidance_in.in_layer": "time_guidance_embed.guidance_embedder.linear_1",
        "guidance_in.out_layer": "time_guidance_embed.guidance_embedder.linear_2",
        "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
        "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
        "single_stream_modulation.lin": "single_stream_modulation.linear",
        "final_layer.adaLN_modulation.1": "norm_out.linear",
    },
    versions=(
        Version("FLUX.2 klein 4B", 3072, {"transformer_blocks": 5, "single_transformer_blocks": 20}),
        Version("FLUX.2 klein 9B", 4096, {"transformer_blocks": 8, "single_transformer_blocks": 24}),
        Version("FLUX.2 dev", 6144, {"transformer_blocks": 8, "single_transformer_blocks": 48}),
    ),
    swapped=("final_layer.adaLN_modulation.1",),
    aspects={"img_mlp.0": 6, "txt_mlp.0": 6, "img_mlp.2": 1 / 3, "txt_mlp.2": 1 / 3, "linear1": 9, "linear2": 1 / 4},
    header_names=("flux2_klein", "flux-2", "flux2"),
)

_ZIMAGE_BLOCK = {
    "attention.qkv": "attention.to_q attention.to_k attention.to_v",
    "attention.out": "attention.to_out.0",
    "attention.q_norm": "attention.norm_q",
    "attention.k_norm": "attention.norm_k",
    "feed_forward.w1": "feed_forward.w1",
    "feed_forward.w2": "feed_forward.w2",
    "feed_forward.w3": "feed_forward.w3",
    "adaLN_modulation.0": "adaLN_modulation.0",
    "attention_norm1": "attention_norm1",
    "attention_norm2": "attention_norm2",
    "ffn_norm1": "ffn_norm1",
    "ffn_norm2": "ffn_norm2",
}
ZIMAGE = TransformerFamily(
    name="zimage",
    title="Z-Image",
    blocks=tuple(Blocks(name, name, _ZIMAGE_BLOCK) for name in ("layers", "noise_refiner", "context_refiner")),
    outside={
        "x_embedder": "all_x_embedder.2-1",
        "final_layer.linear": "all_final_layer.2-1.linear",
        "final_layer.adaLN_modulation.1": "all_final_layer.2-1.adaLN_modulation.1",
        "t_embedder.mlp.0": "t_embedder.mlp.0",
        "t_embedder.mlp.2": "t_embedder.mlp.2",
        "cap_embedder.0": "cap_embedder.0",
        "cap_embedder.1": "cap_embedder.1",
    },
    versions=(Version("Z-Image", 3840, {"layers": 30}),),
    header_names=("zimage", "z-image"),
    writes_paths=True,
    writes_alpha=True,
)

_KREA2_BLOCK = {
    "attn.wq": "attn.to_q",
    "attn.wk": "attn.to_k",
    "attn.wv": "attn.to_v",
    "attn.gate": "attn.to_gate",
    "attn.wo": "attn.to_out.0",
    "attn.to_out": "attn.to_out.0",
    "mlp.gate": "ff.gate",
    "mlp.up": "ff.up",
    "mlp.down": "ff.down",
}
KREA2 = TransformerFamily(
    name="krea2",
    title="Krea 2",
    blocks=(
        Blocks("blocks", "transformer_blocks", _KREA2_BLOCK),
        Blocks("txtfusion.layerwise_blocks", "text_fusion.layerwise_blocks", _KREA2_BLOCK),
        Blocks("txtfusion.refiner_blocks", "text_fusion.refiner_blocks", _KREA2_BLOCK),
    ),
    outside={
        "first": "img_in",
        "last.linear": "final_layer.linear",
        "tmlp.0": "time_embed.linear_1",
        "tmlp.2": "time_embed.linear_2",
        "tproj.1": "time_mod_proj",
        "txtmlp.1": "txt_in.linear_1",
        "txtmlp.3": "txt_in.linear_2",
        "txtfusion.projector": "text_fusion.projector",
    },
    versions=(Version("Krea 2", 6144, {"transformer_blocks": 28}),),
    header_names=("krea2", "krea-2"),
)


def _same(*names: str) -> dict[str, str]:
    """Return modules that have the same name in the original model and in diffusers'."""
    return {name: name for name in names}


QWEN_IMAGE = TransformerFamily(
    name="qwen-image",
    title="Qwen-Image",
    blocks=(
        Blocks(
            "transformer_blocks",
            "transformer_blocks",
            _same(
                "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.norm_q", "attn.norm_k",
                "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out", "attn.norm_added_q",
                "attn.norm_added_k", "img_mod.1", "img_mlp.net.0.proj", "img_mlp.net.2", "txt_mod.1",
                "txt_mlp.net.0.proj", "txt_mlp.net.2",
            ),
        ),
    ),
    outside=_same(
        "img_in", "txt_in", "txt_norm", "time_text_embed.timestep_embedder.linear_1",
        "time_text_embed.timestep_embedder.linear_2", "norm_out.linear", "proj_out",
    ),
    versions=(Version("Qwen-Image", 3072, {"transformer_blocks": 60}),),
    header_names=("qwen_image",),
    writes_paths=True,
    writes_alpha=True,
)  # fmt: skip

SD3 = TransformerFamily(
    name="sd3",
    title="Stable Diffusion 3",
    blocks=(
        Blocks(
            "joint_blocks",
            "transformer_blocks",
            {
                "x_block.attn.qkv": "attn.to_q attn.to_k attn.to_v",
                "x_block.attn.proj": "attn.to_out.0",
                "x_block.attn.ln_q": "attn.norm_q",
                "x_block.attn.ln_k": "attn.norm_k",
                "x_block.attn2.qkv": "attn2.to_q attn2.to_k attn2.to_v",
                "x_block.attn2.proj": "attn2.to_out.0",
                "x_block.attn2.ln_q": "attn2.norm_q",
                "x_block.attn2.ln_k": "attn2.norm_k",
                "x_block.mlp.fc1": "ff.net.0.proj",
                "x_block.mlp.fc2": "ff.net.2",
                "x_block.adaLN_modulation.1": "norm1.linear",
                "context_block.attn.qkv": "attn.add_q_proj attn.add_k_proj attn.add_v_proj",
                "context_block.attn.proj": "attn.to_add_out",
                "context_block.attn.ln_q": "attn.norm_added_q",
                "context_block.attn.ln_k": "attn.norm_added_k",
                "context_block.mlp.fc1": "ff_context.net.0.proj",
                "context_block.mlp.fc2": "ff_context.net.2",
                "context_block.adaLN_modulation.1": "norm1_context.linear",
            },
        ),
    ),
    outside={
        "x_embedder.proj": "pos_embed.proj",
        "context_embedder": "context_embedder",
        "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
        "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
        "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
        "final_layer.linear": "proj_out",
        "final_layer.adaLN_modulation.1": "norm_out.linear",
    },
    versions=(
        Version("Stable Diffusion 3.5 Large", 2432, {"transformer_blocks": 38}),
        Version("Stable Diffusion 3 or 3.5 Medium", 1536, {"transformer_blocks": 24}),
    ),
    # In the last block the context ends: its modulation has two parts, shift and scale, and they are swapped too.
    swapped=("final_layer.adaLN_modulation.1", "context_block.adaLN_modulation.1"),
    header_names=("sd3", "stable-diffusion-v3", "stable-diffusion-3"),
    writes_alpha=True,
)

FAMILIES = (FLUX2, ZIMAGE, FLUX1, CHROMA, KREA2, QWEN_IMAGE, SD3)
"""In this order where a file can be of several."""
TITLES = tuple(family.title for family in FAMILIES)
