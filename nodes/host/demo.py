"""The demo world as the host's own MODEL, CLIP and VAE."""

from __future__ import annotations

from typing import Any, ClassVar

import comfy.clip_model
import comfy.latent_formats
import comfy.model_management
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.utils
import folder_paths
import torch
from comfy.model_patcher import CoreModelPatcher, ModelPatcher

from ...erasers.demo.world import WEIGHTS, config_of, judge, latent_colours, weights_of

_UNET = {
    "image_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "num_res_blocks": [1, 1],
    "transformer_depth": [0, 1],
    "transformer_depth_output": [0, 0, 1, 1],
    "transformer_depth_middle": 1,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
    "use_temporal_attention": False,
    "legacy": False,
}


class _Latents(comfy.latent_formats.LatentFormat):
    """Latents of unit scale, with colours for previews."""

    scale_factor = 1.0
    latent_channels = 4

    def __init__(self) -> None:
        *colours, zero = latent_colours()
        self.latent_rgb_factors = colours
        self.latent_rgb_factors_bias = zero


class _Config(comfy.supported_models.SD15):
    """Stable Diffusion 1 with another width."""

    unet_config: ClassVar = {"context_dim": 192, "model_channels": 64}
    unet_extra_config: ClassVar = {"num_heads": 4, "num_head_channels": -1}
    latent_format = _Latents
    memory_usage_factor = 1.0


def demo_model(disable_dynamic: bool = False) -> ModelPatcher:
    """The denoiser in float32, with fresh weights from disk."""
    unet = config_of("unet")
    channels = unet["block_out_channels"]
    shape = {
        "model_channels": channels[0],
        "channel_mult": tuple(c // channels[0] for c in channels),
        "context_dim": unet["cross_attention_dim"],
    }
    config = _Config({**_UNET, **shape})
    config.set_inference_dtype(torch.float32, None)
    offload = comfy.model_management.unet_offload_device()
    model = config.get_model({}, device=offload)
    names = comfy.utils.unet_to_diffusers(config.unet_config)
    weights = _load("unet")
    state = {names[name]: value for name, value in weights.items()}
    model.diffusion_model.load_state_dict(state, strict=True)
    model.diffusion_model.to(offload).requires_grad_(False)
    patcher_class = ModelPatcher if disable_dynamic else CoreModelPatcher
    load = comfy.model_management.get_torch_device()
    patcher = patcher_class(model, load_device=load, offload_device=offload)
    patcher.cached_patcher_init = (demo_model, ())
    return patcher


def demo_clip() -> Any:
    """The text encoder in float32."""
    weights = {f"clip_l.transformer.{name}": value for name, value in _load("text_encoder").items()}

    class Target:
        params: ClassVar = {}
        clip = _ClipModel
        tokenizer = _Tokenizer

    parameters = comfy.utils.calculate_parameters(weights)
    embeddings = folder_paths.get_folder_paths("embeddings")
    clip = comfy.sd.CLIP(Target, embeddings, parameters=parameters, model_options={"dtype": torch.float32})
    width = config_of("text_encoder")["hidden_size"]
    weights["clip_l.transformer.text_projection.weight"] = torch.eye(width)
    missing, unexpected = clip.cond_stage_model.load_state_dict(weights, strict=False)
    problems = [name for name in (*missing, *unexpected) if not name.endswith(("logit_scale", "position_ids"))]
    if problems:
        raise RuntimeError(f"the demo world's text encoder does not fit this host: {problems[:3]}")
    return clip


def demo_vae() -> Any:
    """The autoencoder in float32."""
    config = config_of("vae")
    channels = config["block_out_channels"]
    layout = {
        "double_z": True,
        "z_channels": config["latent_channels"],
        "resolution": 128,
        "in_channels": 3,
        "out_ch": 3,
        "ch": channels[0],
        "ch_mult": [c // channels[0] for c in channels],
        "num_res_blocks": config["layers_per_block"],
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    params = {"ddconfig": layout, "embed_dim": config["latent_channels"]}
    vae = comfy.sd.VAE(sd=_load("vae"), config={"params": params}, dtype=torch.float32)
    for module in vae.first_stage_model.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.num_groups = config["norm_num_groups"]
    return vae


class DemoVision:
    """The judge's image half of the text/image pair, with the one method that nodes ask of a CLIP_VISION."""

    def encode_image(self, image: torch.Tensor, crop: bool = True) -> dict[str, torch.Tensor]:
        """Pictures `[n, h, w, 3]` in 0..1 to `image_embeds` `[n, e]`."""
        return {"image_embeds": judge()(image.movedim(-1, 1).float())[1]}


class _TextModel(comfy.clip_model.CLIPTextModel):
    """The host's CLIP text model, with a vocabulary of its own size."""

    def __init__(self, config_dict: dict[str, Any], dtype: Any, device: Any, operations: Any) -> None:
        super().__init__(config_dict, dtype, device, operations)
        embedding = operations.Embedding(
            config_dict["vocab_size"], config_dict["hidden_size"], dtype=dtype, device=device
        )
        self.text_model.embeddings.token_embedding = embedding


class _Encoder(comfy.sd1_clip.SDClipModel):
    def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: dict[str, Any] | None = None) -> None:
        config = config_of("text_encoder")
        special = {"start": config["bos_token_id"], "end": config["eos_token_id"], "pad": config["eos_token_id"]}
        super().__init__(
            device=device,
            dtype=dtype,
            textmodel_json_config=config,
            model_class=_TextModel,
            special_tokens=special,
            return_projected_pooled=False,
            model_options=model_options or {},
        )


class _ClipModel(comfy.sd1_clip.SD1ClipModel):
    def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: dict[str, Any] | None = None) -> None:
        super().__init__(device=device, dtype=dtype, model_options=model_options or {}, clip_model=_Encoder)


class _WordTokenizer(comfy.sd1_clip.SDTokenizer):
    def __init__(self, embedding_directory: Any = None, tokenizer_data: dict[str, Any] | None = None) -> None:
        super().__init__(
            tokenizer_path=str(WEIGHTS / "tokenizer"),
            embedding_directory=embedding_directory,
            embedding_size=config_of("text_encoder")["hidden_size"],
            tokenizer_data=tokenizer_data or {},
        )


class _Tokenizer(comfy.sd1_clip.SD1Tokenizer):
    def __init__(self, embedding_directory: Any = None, tokenizer_data: dict[str, Any] | None = None) -> None:
        super().__init__(
            embedding_directory=embedding_directory, tokenizer_data=tokenizer_data or {}, tokenizer=_WordTokenizer
        )


def _load(part: str) -> dict[str, torch.Tensor]:
    return {name: value.float() for name, value in comfy.utils.load_torch_file(str(weights_of(part))).items()}
