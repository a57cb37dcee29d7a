"""Kinds of layers to train (learn/where.py) by the names of modules, in models that are no UNets.

Where text and picture share one attention, the text's own projections count as cross-attention and the picture's as
self-attention. Where all layers take both as one sequence, only those before them that see the text alone do; where
there is but one of these, the blocks' keys and values count too.
"""

from __future__ import annotations

from collections.abc import Mapping

from .learn.where import (
    BLOCKS,
    CROSS,
    FEED_FORWARD,
    KEYS_VALUES,
    NOT_CROSS,
    SELF,
    SELF_AND_QUERY,
    TEXT_STREAM,
)


def _kinds(
    blocks: str, cross: str, keys_values: str, own: str, forward: str, text: str = "", query: str = ""
) -> Mapping[str, str]:
    """Patterns by kind.

    Args:
        blocks: of the transformer blocks.
        cross, keys_values: of the layers by which the picture reads the text, and of those of them that see the text.
        own: of self-attention.
        forward: of feed-forward layers.
        text: of all layers that only text passes; "" where `keys_values` are all.
        query: of cross-attention's queries; "" where self-attention has them.
    """
    inside = rf"^(?=.*(?:{blocks}))"
    return {
        CROSS: cross,
        KEYS_VALUES: keys_values,
        NOT_CROSS: rf"{inside}(?!.*(?:{cross}))",
        SELF: rf"{inside}.*(?:{own})",
        SELF_AND_QUERY: rf"{inside}.*(?:{own}|{query})" if query else rf"{inside}.*(?:{own})",
        BLOCKS: blocks,
        FEED_FORWARD: rf"{inside}.*(?:{forward})",
        TEXT_STREAM: text or keys_values,
    }


TWO_STREAMS = _kinds(
    r"^(?:double|single)_blocks\.",
    r"\.txt_attn\.",
    r"\.txt_attn\.qkv$",
    r"\.img_attn\.",
    r"_mlp\.",
    r"\.txt_(?:attn|mlp)\.",
)
"""Flux and its relatives."""
JOINT = _kinds(
    r"^joint_blocks\.",
    r"\.context_block\.attn\.",
    r"\.context_block\.attn\.qkv$",
    r"\.x_block\.attn2?\.",
    r"\.mlp\.",
    r"\.context_block\.(?:attn|mlp)\.",
)
"""Stable Diffusion 3."""
AURA = _kinds(
    r"^(?:double|single)_layers\.",
    r"^double_layers\.\d+\.attn\.w1",
    r"^double_layers\.\d+\.attn\.w1[kv]$",
    r"\.attn\.w2",
    r"\.mlp[CX]?\.",
    r"^double_layers\.\d+\.(?:attn\.w1|mlpC\.)",
)
"""AuraFlow."""
ADDED = _kinds(
    r"^transformer_blocks\.",
    r"\.attn\.(?:add_[qkv]_proj|to_add_out)$",
    r"\.attn\.add_[kv]_proj$",
    r"\.attn\.to_(?:[qkv]|out\.0)$",
    r"_mlp\.",
    r"\.attn\.(?:add_[qkv]_proj|to_add_out)$|\.txt_mlp\.",
)
"""Qwen-Image."""
MIXTURE = _kinds(
    r"^(?:double|single)_stream_blocks\.",
    r"\.attn1\.to_\w+_t$",
    r"\.attn1\.to_[kv]_t$",
    r"\.attn1\.to_(?:[qkv]|out)$",
    r"\.ff_[it]\.",
    r"\.attn1\.to_\w+_t$|\.ff_t\.|^caption_projection\.",
)
"""HiDream."""
REFINED = _kinds(
    r"^(?:layers|\w+_refiner)\.",
    r"^context_refiner\.\d+\.attention\.",
    r"^context_refiner\.\d+\.attention\.qkv$",
    r"^(?:layers|noise_refiner)\.\d+\.attention\.",
    r"\.feed_forward\.",
    r"^context_refiner\.\d+\.(?:attention|feed_forward)\.|^cap_embedder\.1$",
)
"""Lumina 2 and Z-Image."""
CAPTIONED = _kinds(
    r"^blocks\.",
    r"\.cross_attn\.",
    r"\.cross_attn\.kv_linear$",
    r"\.attn\.",
    r"\.mlp\.",
    query=r"\.cross_attn\.q_linear$",
)
"""PixArt."""
BERT = _kinds(r"^blocks\.", r"\.attn2\.", r"\.attn2\.kv_proj$", r"\.attn1\.", r"\.mlp\.", query=r"\.attn2\.q_proj$")
"""HunyuanDiT."""
WAN = _kinds(
    r"^blocks\.", r"\.cross_attn\.", r"\.cross_attn\.[kv]$", r"\.self_attn\.", r"\.ffn\.", query=r"\.cross_attn\.q$"
)
"""Wan."""
PLAIN = _kinds(
    r"^transformer_blocks\.",
    r"\.attn2\.",
    r"\.attn2\.to_[kv]$",
    r"\.attn1\.",
    r"\.ff\.net\.",
    query=r"\.attn2\.to_q$",
)
"""LTX-Video."""
COSMOS1 = _kinds(
    r"^blocks\.",
    r"\.blocks\.1\.block\.attn\.",
    r"\.blocks\.1\.block\.attn\.to_[kv]\.0$",
    r"\.blocks\.0\.block\.attn\.",
    r"\.block\.layer\d$",
    query=r"\.blocks\.1\.block\.attn\.to_q\.0$",
)
"""Cosmos 1."""
COSMOS2 = _kinds(
    r"^blocks\.",
    r"\.cross_attn\.",
    r"\.cross_attn\.[kv]_proj$",
    r"\.self_attn\.",
    r"\.mlp\.",
    query=r"\.cross_attn\.q_proj$",
)
"""Cosmos Predict2."""
OMNIGEN2 = _kinds(
    r"^(?:layers|noise_refiner|context_refiner)\.",
    r"^context_refiner\.\d+\.attn\.",
    r"^context_refiner\.\d+\.attn\.to_[kv]$",
    r"^(?:layers|noise_refiner)\.\d+\.attn\.",
    r"\.feed_forward\.",
    r"^context_refiner\.\d+\.(?:attn|feed_forward)\.|^time_caption_embed\.caption_embedder\.1$",
)
"""OmniGen 2."""
BOOGU = _kinds(
    r"^(?:(?:single|double)_stream_layers|noise_refiner|context_refiner)\.",
    r"\.processor\.instruct_(?:to_[qkv]|out)$|^context_refiner\.\d+\.attn\.",
    r"\.processor\.instruct_to_[kv]$",
    r"\.img_self_attn\.|\.processor\.img_|^(?:single_stream_layers|noise_refiner)\.\d+\.attn\.",
    r"feed_forward\.",
    r"\.processor\.instruct_|\.instruct_feed_forward\.|^context_refiner\.\d+\.(?:attn|feed_forward)\.",
)
"""Boogu."""
KANDINSKY = _kinds(
    r"^(?:visual|text)_transformer_blocks\.",
    r"\.cross_attention\.",
    r"\.cross_attention\.to_(?:key|value)$",
    r"\.self_attention\.",
    r"\.feed_forward\.",
    query=r"\.cross_attention\.to_query$",
)
"""Kandinsky 5."""
ASYMMETRIC = _kinds(
    r"^blocks\.",
    r"\.attn\.(?:qkv|proj)_y$",
    r"\.attn\.qkv_y$",
    r"\.attn\.(?:qkv|proj)_x$",
    r"\.mlp_[xy]\.",
    r"\.attn\.(?:qkv|proj)_y$|\.mlp_y\.",
)
"""Mochi."""
COGVIDEOX = _kinds(
    r"^blocks\.",
    r"^blocks\.\d+\.[kv]$|^patch_embed\.text_proj$",
    r"^patch_embed\.text_proj$",
    r"^blocks\.\d+\.(?:q|attn_out)$",
    r"\.ff_(?:proj|out)$",
)
"""CogVideoX."""
ERNIE = _kinds(
    r"^layers\.",
    r"\.self_attention\.to_[kv]$|^text_proj$",
    r"^text_proj$",
    r"\.self_attention\.to_(?:q|out\.0)$",
    r"\.mlp\.",
)
"""Ernie-Image."""
JOY = _kinds(
    r"^double_blocks\.",
    r"\.txt_attn_(?:qkv|proj)$",
    r"\.txt_attn_qkv$",
    r"\.img_attn_(?:qkv|proj)$",
    r"_mlp\.",
    r"\.txt_(?:attn_|mlp\.)",
)
"""JoyImage."""
IDEOGRAM4 = _kinds(
    r"^layers\.",
    r"\.attention\.qkv$|^llm_cond_proj$",
    r"^llm_cond_proj$",
    r"\.attention\.o$",
    r"\.feed_forward\.",
)
"""Ideogram 4."""
