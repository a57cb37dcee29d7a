"""How models of every family are built from the host's own classes: true configurations, and what is reduced in them.

Widths of text features are true, because a family is recognised by them; so are the tokenizers where the host ships
them. Import only after the `comfy` fixture has run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from family_encoders import (
    CLIP_G,
    CLIP_L,
    SD1,
    chroma_clip,
    encoders_of,
    hunyuan_video15_clip,
    llm_sizes,
    t5_sizes,
    with_mistral,
    with_vocabulary,
)
from host_configs import (
    AURA,
    BOOGU,
    CHROMA,
    ERNIE,
    FLUX,
    FLUX2,
    HIDREAM,
    HYDIT,
    IDEOGRAM4,
    JOYIMAGE,
    KLEIN_4B,
    KLEIN_9B,
    LONGCAT,
    LUMINA2,
    MAGE_FLOW,
    OMNIGEN2,
    OVIS,
    PIXART,
    QWEN,
    REFINER,
    SD3,
    SMALL_FLUX,
    SMALL_FLUX2,
    SMALL_HIDREAM,
    SMALL_LUMINA,
    SMALL_SD3,
    SMALL_UNET,
    UNET,
    XL,
    ZIMAGE,
)
from host_video_configs import (
    COGVIDEOX,
    COSMOS1,
    COSMOS2,
    HUNYUAN_IMAGE,
    HUNYUAN_VIDEO,
    HUNYUAN_VIDEO15,
    KANDINSKY,
    LTXV,
    MOCHI,
    WAN,
)


@dataclass(frozen=True)
class Plan:
    """How to build one family.

    Attributes:
        config: the host's class in `comfy.supported_models`.
        full: the true `unet_config`, as the host detects it from a checkpoint's tensors.
        tiny: what is reduced in it.
        latent: shape of a small latent without its batch.
        clip: finds the host's `(tokenizer, model)` classes of the text encoders.
        options: reduced configurations of the text encoders, as the host takes them.
        steps: after which the text shows in a picture; the first looks at noise too loud for it in some.
    """

    config: str
    full: Mapping[str, Any]
    tiny: Mapping[str, Any]
    latent: tuple[int, ...]
    clip: Callable[[], tuple[Any, Any]]
    options: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 1


PLANS: dict[str, Plan] = {
    "sd1": Plan("SD15", UNET | {"model_channels": 320, "context_dim": 768}, SMALL_UNET, (4, 8, 8), SD1, CLIP_L),
    "sd2": Plan(
        "SD20",
        UNET | {"model_channels": 320, "context_dim": 1024, "use_linear_in_transformer": True},
        SMALL_UNET,
        (4, 8, 8),
        encoders_of("text_encoders.sd2_clip", "SD2Tokenizer", "SD2ClipModel"),
        {"clip_h_model_config": CLIP_G["clip_g_model_config"]},
    ),
    "sdxl": Plan(
        "SDXL",
        UNET | XL,
        SMALL_UNET,
        (4, 8, 8),
        encoders_of("sdxl_clip", "SDXLTokenizer", "SDXLClipModel"),
        CLIP_L | CLIP_G,
    ),
    "sdxl_refiner": Plan(
        "SDXLRefiner",
        UNET | REFINER,
        SMALL_UNET,
        (4, 8, 8),
        encoders_of("sdxl_clip", "SDXLTokenizer", "SDXLRefinerClipModel"),
        CLIP_G,
    ),
    "sd3": Plan(
        "SD3",
        SD3,
        SMALL_SD3,
        (16, 8, 8),
        encoders_of("text_encoders.sd3_clip", "SD3Tokenizer", "sd3_clip"),
        CLIP_L | CLIP_G | t5_sizes("t5xxl"),
    ),
    "flux": Plan(
        "Flux",
        FLUX,
        SMALL_FLUX,
        (16, 8, 8),
        encoders_of("text_encoders.flux", "FluxTokenizer", "flux_clip"),
        CLIP_L | t5_sizes("t5xxl"),
    ),
    "ovis_image": Plan(
        "FluxSchnell",
        OVIS,
        SMALL_FLUX,
        (16, 8, 8),
        encoders_of("text_encoders.ovis", "OvisTokenizer", "te"),
        llm_sizes("qwen3_2b"),
    ),
    "longcat_image": Plan(
        "LongCatImage",
        LONGCAT,
        SMALL_FLUX,
        (16, 8, 8),
        encoders_of("text_encoders.longcat_image", "LongCatImageTokenizer", "te"),
        llm_sizes("qwen25_7b"),
    ),
    "flux2": Plan(
        "Flux2",
        FLUX2,
        SMALL_FLUX2,
        (128, 4, 4),
        with_mistral(encoders_of("text_encoders.flux", "Flux2Tokenizer", "flux2_te")),
        llm_sizes("mistral3_24b", num_hidden_layers=31),
    ),
    "flux2_klein_4b": Plan(
        "Flux2",
        KLEIN_4B,
        SMALL_FLUX2,
        (128, 4, 4),
        encoders_of("text_encoders.flux", "KleinTokenizer", "klein_te", model_type="qwen3_4b"),
        llm_sizes("qwen3_4b", num_hidden_layers=28),
    ),
    "flux2_klein_9b": Plan(
        "Flux2",
        KLEIN_9B,
        SMALL_FLUX2,
        (128, 4, 4),
        encoders_of("text_encoders.flux", "KleinTokenizer8B", "klein_te", model_type="qwen3_8b"),
        llm_sizes("qwen3_8b", num_hidden_layers=28),
    ),
    "chroma": Plan(
        "Chroma",
        CHROMA,
        SMALL_FLUX | {"out_dim": 64, "hidden_dim": 32, "n_layers": 1},
        (16, 8, 8),
        chroma_clip,
        t5_sizes("t5xxl"),
    ),
    "pixart": Plan(
        "PixArtSigma",
        PIXART,
        {"num_heads": 2, "hidden_size": 32, "depth": 1},
        (4, 64, 64),
        encoders_of("text_encoders.pixart_t5", "PixArtTokenizer", "PixArtT5XXL"),
        t5_sizes("t5xxl"),
    ),
    "hunyuan_dit": Plan(
        "HunyuanDiT",
        HYDIT,
        {"depth": 2, "hidden_size": 64, "num_heads": 2},
        (4, 8, 8),
        with_vocabulary(
            encoders_of("text_encoders.hydit", "HyditTokenizer", "HyditModel"),
            "mt5xl.",
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
        ),
        {"hydit_clip_model_config": CLIP_G["clip_g_model_config"]} | t5_sizes("mt5xl"),
    ),
    "auraflow": Plan(
        "AuraFlow",
        AURA,
        {"max_seq": 64, "dim": 64, "n_heads": 2, "global_conddim": 64, "n_double_layers": 1, "n_layers": 2},
        (4, 8, 8),
        encoders_of("text_encoders.aura_t5", "AuraT5Tokenizer", "AuraT5Model"),
        t5_sizes("pile_t5xl"),
    ),
    "lumina2": Plan(
        "Lumina2",
        LUMINA2,
        SMALL_LUMINA,
        (16, 8, 8),
        with_vocabulary(
            encoders_of("text_encoders.lumina2", "LuminaTokenizer", "te"), pad_id=0, eos_id=1, bos_id=2, unk_id=3
        ),
        llm_sizes("gemma2_2b"),
    ),
    "z_image": Plan(
        "ZImage",
        ZIMAGE,
        SMALL_LUMINA | {"dim": 256, "axes_dims": [32, 48, 48]},
        (16, 8, 8),
        encoders_of("text_encoders.z_image", "ZImageTokenizer", "te"),
        llm_sizes("qwen3_4b"),
    ),
    "qwen_image": Plan(
        "QwenImage",
        QWEN,
        {"num_layers": 1, "attention_head_dim": 32, "num_attention_heads": 2, "axes_dims_rope": (8, 12, 12)},
        (16, 1, 8, 8),
        encoders_of("text_encoders.qwen_image", "QwenImageTokenizer", "te"),
        llm_sizes("qwen25_7b"),
    ),
    "hidream": Plan(
        "HiDream",
        HIDREAM,
        SMALL_HIDREAM,
        (16, 8, 8),
        encoders_of("text_encoders.hidream", "HiDreamTokenizer", "hidream_clip"),
        CLIP_L | CLIP_G | t5_sizes("t5xxl") | llm_sizes("llama"),
    ),
    "wan": Plan(
        "WAN21_T2V",
        WAN,
        {"dim": 64, "num_heads": 2, "ffn_dim": 64, "num_layers": 1},
        (16, 1, 8, 8),
        with_vocabulary(
            encoders_of("text_encoders.wan", "WanT5Tokenizer", "te"), pad_id=0, eos_id=1, unk_id=2, bos_id=-1
        ),
        t5_sizes("umt5xxl"),
    ),
    "ltxv": Plan(
        "LTXV",
        LTXV,
        {"num_layers": 1, "attention_head_dim": 32, "num_attention_heads": 2, "cross_attention_dim": 64},
        (128, 1, 4, 4),
        encoders_of("text_encoders.lt", "LTXVT5Tokenizer", "ltxv_te"),
        t5_sizes("t5xxl"),
    ),
    "hunyuan_video": Plan(
        "HunyuanVideo",
        HUNYUAN_VIDEO,
        SMALL_FLUX,
        (16, 1, 8, 8),
        encoders_of("text_encoders.hunyuan_video", "HunyuanVideoTokenizer", "hunyuan_video_clip"),
        CLIP_L | llm_sizes("llama", num_hidden_layers=4),
    ),
    "hunyuan_image": Plan(
        "HunyuanImage21",
        HUNYUAN_IMAGE,
        SMALL_FLUX | {"axes_dim": [16, 16]},
        (64, 4, 4),
        encoders_of("text_encoders.hunyuan_image", "HunyuanImageTokenizer", "te", byt5=False),
        llm_sizes("qwen25_7b", num_hidden_layers=4),
    ),
    "hunyuan_video15": Plan(
        "HunyuanVideo15",
        HUNYUAN_VIDEO15,
        SMALL_FLUX | {"depth_single_blocks": 0},
        (32, 1, 4, 4),
        hunyuan_video15_clip,
        llm_sizes("qwen25_7b", num_hidden_layers=4),
    ),
    "omnigen2": Plan(
        "Omnigen2",
        OMNIGEN2,
        {"axes_dim_rope": [8, 12, 12], "hidden_size": 64, "num_attention_heads": 2, "num_kv_heads": 1}
        | {"num_layers": 1, "num_refiner_layers": 1},
        (16, 8, 8),
        encoders_of("text_encoders.omnigen2", "Omnigen2Tokenizer", "te"),
        llm_sizes("qwen25_3b"),
    ),
    "boogu": Plan(
        "Boogu",
        BOOGU,
        {"axes_dim_rope": [8, 12, 12], "hidden_size": 64, "num_attention_heads": 2, "num_kv_heads": 1}
        | {"num_layers": 1, "num_double_stream_layers": 1, "num_refiner_layers": 1},
        (16, 8, 8),
        encoders_of("text_encoders.boogu", "BooguTokenizer", "te"),
        llm_sizes("qwen3vl_8b"),
    ),
    "kandinsky5": Plan(
        "Kandinsky5",
        KANDINSKY,
        {"model_dim": 64, "axes_dims": (8, 12, 12), "time_dim": 32, "ff_dim": 64}
        | {"num_text_blocks": 1, "num_visual_blocks": 1},
        (16, 1, 8, 8),
        encoders_of("text_encoders.kandinsky5", "Kandinsky5Tokenizer", "te"),
        CLIP_L | llm_sizes("qwen25_7b"),
    ),
    "mochi": Plan(
        "GenmoMochi",
        MOCHI,
        {"depth": 2, "num_heads": 2, "hidden_size_x": 64, "hidden_size_y": 64, "mlp_ratio_x": 192.0},
        (12, 1, 8, 8),
        encoders_of("text_encoders.genmo", "MochiT5Tokenizer", "mochi_te"),
        t5_sizes("t5xxl"),
    ),
    "mage_flow": Plan(
        "MageFlow",
        MAGE_FLOW,
        {"num_layers": 1, "attention_head_dim": 32, "num_attention_heads": 2, "axes_dims_rope": (8, 12, 12)},
        (128, 4, 4),
        encoders_of("text_encoders.mage_flow", "MageFlowTokenizer", "te"),
        llm_sizes("qwen3vl_4b"),
    ),
    "cosmos1": Plan(
        "CosmosT2V",
        COSMOS1,
        {"model_channels": 64, "num_blocks": 1, "num_heads": 2, "adaln_lora_dim": 16, "max_img_h": 16, "max_img_w": 16},
        (16, 1, 8, 8),
        encoders_of("text_encoders.cosmos", "CosmosT5Tokenizer", "te"),
        t5_sizes("t5xxl"),
    ),
    "cosmos2": Plan(
        "CosmosT2IPredict2",
        COSMOS2,
        {"model_channels": 64, "num_blocks": 1, "num_heads": 2, "adaln_lora_dim": 16, "max_img_h": 16, "max_img_w": 16},
        (16, 1, 8, 8),
        encoders_of("text_encoders.cosmos", "CosmosT5Tokenizer", "te"),
        t5_sizes("t5xxl"),
    ),
    "cogvideox": Plan(
        "CogVideoX_T2V",
        COGVIDEOX,
        {"num_attention_heads": 2, "attention_head_dim": 32, "time_embed_dim": 32, "num_layers": 1},
        (16, 1, 8, 8),
        encoders_of("text_encoders.cogvideo", "CogVideoXTokenizer", "cogvideo_te"),
        t5_sizes("t5xxl"),
        steps=3,
    ),
    "joyimage": Plan(
        "JoyImage",
        JOYIMAGE,
        {"hidden_size": 64, "num_attention_heads": 2, "num_layers": 1, "rope_dim_list": [8, 12, 12]},
        (16, 1, 8, 8),
        encoders_of("text_encoders.joyimage", "JoyImageTokenizer", "te"),
        llm_sizes("qwen3vl_8b"),
    ),
    "ernie_image": Plan(
        "ErnieImage",
        ERNIE,
        {
            "hidden_size": 64,
            "num_attention_heads": 2,
            "num_layers": 1,
            "ffn_hidden_size": 64,
            "rope_axes_dim": (8, 12, 12),
        },
        (128, 4, 4),
        with_mistral(encoders_of("text_encoders.ernie", "ErnieTokenizer", "te")),
        llm_sizes("ministral3_3b"),
    ),
    "ideogram4": Plan(
        "Ideogram4",
        IDEOGRAM4,
        {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 32, "intermediate_size": 64, "adaln_dim": 16}
        | {"mrope_section": [6, 5, 5]},
        (128, 4, 4),
        encoders_of("text_encoders.ideogram4", "Ideogram4Tokenizer", "te"),
        llm_sizes("qwen3vl_8b", num_hidden_layers=37),
    ),
}
"""By name of the family in `erasers/families`."""
