"""The true configurations of the host's models, as it detects them from a checkpoint, and what shrinks them."""

from __future__ import annotations

UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "use_spatial_transformer": True,
    "legacy": False,
    "channel_mult": (1, 2, 4, 4),
    "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "use_temporal_attention": False,
    "adm_in_channels": None,
}
XL = {
    "model_channels": 320,
    "channel_mult": (1, 2, 4),
    "num_res_blocks": [2, 2, 2],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_middle": 10,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "num_classes": "sequential",
    "context_dim": 2048,
    "adm_in_channels": 2816,
    "use_linear_in_transformer": True,
}
REFINER = {
    "model_channels": 384,
    "transformer_depth": [0, 0, 4, 4, 4, 4, 0, 0],
    "transformer_depth_middle": 4,
    "transformer_depth_output": [0, 0, 0, 4, 4, 4, 4, 4, 4, 0, 0, 0],
    "num_classes": "sequential",
    "context_dim": 1280,
    "adm_in_channels": 2560,
    "use_linear_in_transformer": True,
}
SMALL_UNET = {
    "model_channels": 32,
    "channel_mult": (1, 2),
    "num_res_blocks": [1, 1],
    "transformer_depth": [1, 1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1],
    "num_heads": 2,
    "num_head_channels": -1,
}
FLUX = {
    "image_model": "flux",
    "axes_dim": [16, 56, 56],
    "num_heads": 24,
    "mlp_ratio": 4.0,
    "theta": 10000,
    "out_channels": 16,
    "qkv_bias": True,
    "txt_ids_dims": [],
    "in_channels": 16,
    "hidden_size": 3072,
    "context_in_dim": 4096,
    "patch_size": 2,
    "vec_in_dim": 768,
    "depth": 19,
    "depth_single_blocks": 38,
    "guidance_embed": True,
    "yak_mlp": False,
    "txt_norm": False,
}
OVIS = {
    **FLUX,
    "context_in_dim": 2048,
    "vec_in_dim": None,
    "txt_ids_dims": [1, 2],
    "depth": 6,
    "depth_single_blocks": 27,
    "guidance_embed": False,
    "yak_mlp": True,
    "txt_norm": True,
}
LONGCAT = {
    **FLUX,
    "context_in_dim": 3584,
    "vec_in_dim": None,
    "txt_ids_dims": [1, 2],
    "depth": 10,
    "depth_single_blocks": 20,
    "guidance_embed": False,
}
FLUX2 = {
    "image_model": "flux2",
    "axes_dim": [32, 32, 32, 32],
    "num_heads": 48,
    "mlp_ratio": 3.0,
    "theta": 2000,
    "out_channels": 128,
    "global_modulation": True,
    "mlp_silu_act": True,
    "qkv_bias": False,
    "ops_bias": False,
    "default_ref_method": "index",
    "ref_index_scale": 10.0,
    "txt_ids_dims": [3],
    "patch_size": 1,
    "in_channels": 128,
    "hidden_size": 6144,
    "context_in_dim": 15360,
    "vec_in_dim": None,
    "depth": 8,
    "depth_single_blocks": 48,
    "guidance_embed": True,
    "yak_mlp": False,
    "txt_norm": False,
}
KLEIN_4B = {
    **FLUX2,
    "hidden_size": 3072,
    "num_heads": 24,
    "context_in_dim": 7680,
    "depth": 5,
    "depth_single_blocks": 20,
    "guidance_embed": False,
}
KLEIN_9B = {**KLEIN_4B, "hidden_size": 4096, "num_heads": 32, "context_in_dim": 12288, "depth": 8}
KLEIN_9B |= {"depth_single_blocks": 24}
SMALL_FLUX = {"axes_dim": [8, 12, 12], "num_heads": 2, "hidden_size": 64, "depth": 1, "depth_single_blocks": 1}
SMALL_FLUX2 = {**SMALL_FLUX, "axes_dim": [8, 8, 8, 8]}
CHROMA = {
    **{name: FLUX[name] for name in FLUX if name not in ("vec_in_dim", "guidance_embed", "yak_mlp", "txt_norm")},
    "image_model": "chroma",
    "in_channels": 64,
    "out_channels": 64,
    "in_dim": 64,
    "out_dim": 3072,
    "hidden_dim": 5120,
    "n_layers": 5,
    "vec_in_dim": None,
}
SD3 = {
    "in_channels": 16,
    "patch_size": 2,
    "out_channels": 16,
    "depth": 38,
    "input_size": None,
    "adm_in_channels": 2048,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 2432}},
    "num_patches": 36864,
    "pos_embed_max_size": 192,
    "qk_norm": "rms",
    "pos_embed_scaling_factor": None,
    "x_block_self_attn_layers": [],
}
SMALL_SD3 = {
    "depth": 1,
    "num_patches": 64,
    "pos_embed_max_size": 8,
    "num_blocks": 2,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 64}},
}
LUMINA2 = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "dim": 2304,
    "cap_feat_dim": 2304,
    "n_layers": 26,
    "qk_norm": True,
    "n_heads": 24,
    "n_kv_heads": 8,
    "axes_dims": [32, 32, 32],
    "axes_lens": [300, 512, 512],
    "rope_theta": 10000.0,
    "ffn_dim_multiplier": 4.0,
}
ZIMAGE = {
    **LUMINA2,
    "dim": 3840,
    "cap_feat_dim": 2560,
    "n_layers": 30,
    "n_heads": 30,
    "n_kv_heads": 30,
    "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
    "rope_theta": 256.0,
    "ffn_dim_multiplier": 8.0 / 3.0,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}
SMALL_LUMINA = {"dim": 64, "n_layers": 1, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2} | {
    "axes_dims": [8, 12, 12]
}
HIDREAM = {
    "image_model": "hidream",
    "attention_head_dim": 128,
    "axes_dims_rope": [64, 32, 32],
    "caption_channels": [4096, 4096],
    "max_resolution": [128, 128],
    "in_channels": 16,
    "llama_layers": [*range(32), *[31] * 16],
    "num_attention_heads": 20,
    "num_routed_experts": 4,
    "num_activated_experts": 2,
    "num_layers": 16,
    "num_single_layers": 32,
    "out_channels": 16,
    "patch_size": 2,
    "text_emb_dim": 2048,
}
SMALL_HIDREAM = {
    "attention_head_dim": 32,
    "axes_dims_rope": [8, 12, 12],
    "llama_layers": [0, 1],
    "num_attention_heads": 2,
    "num_layers": 1,
    "num_single_layers": 1,
}
QWEN = {
    "image_model": "qwen_image",
    "in_channels": 64,
    "num_layers": 60,
}
PIXART = {
    "num_heads": 16,
    "patch_size": 2,
    "hidden_size": 1152,
    "in_channels": 4,
    "depth": 28,
    "model_max_length": 300,
    "image_model": "pixart_sigma",
    "micro_condition": False,
}
HYDIT = {"image_model": "hydit", "depth": 40, "hidden_size": 1408, "mlp_ratio": 4.3637}
AURA = {"max_seq": 1024, "cond_seq_dim": 2048, "n_double_layers": 4, "n_layers": 36}
OMNIGEN2 = {
    "image_model": "omnigen2",
    "axes_dim_rope": [40, 40, 40],
    "axes_lens": [1024, 1664, 1664],
    "ffn_dim_multiplier": None,
    "hidden_size": 2520,
    "in_channels": 16,
    "multiple_of": 256,
    "norm_eps": 1e-05,
    "num_attention_heads": 21,
    "num_kv_heads": 7,
    "num_layers": 32,
    "num_refiner_layers": 2,
    "out_channels": None,
    "patch_size": 2,
    "text_feat_dim": 2048,
    "timestep_scale": 1000.0,
}
BOOGU = {
    "image_model": "boogu",
    "hidden_size": 3360,
    "num_layers": 32,
    "num_double_stream_layers": 8,
    "num_refiner_layers": 2,
    "instruction_feat_dim": 4096,
}
MAGE_FLOW = {"image_model": "mage_flow", "in_channels": 128, "num_layers": 12}
JOYIMAGE = {
    "image_model": "joyimage",
    "in_channels": 16,
    "hidden_size": 3072,
    "patch_size": [1, 2, 2],
    "num_layers": 20,
    "num_attention_heads": 24,
    "text_dim": 4096,
}
ERNIE = {"image_model": "ernie"}
IDEOGRAM4 = {"image_model": "ideogram4", "in_channels": 128, "num_layers": 34}
