"""A tiny model with the widths of SD 1.5's text features, and files of other programs for it, made of one edit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from lethe.erasers.exchange.base import ADAPTERS, TEXT, Base, Owner
from lethe.erasers.exchange.pipeline import pipeline_base
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

ATTENTION = "down_blocks.0.attentions.0"
SITES = tuple(f"{ATTENTION}.transformer_blocks.0.attn2.to_{role}.weight" for role in "kv")
QUERY = f"{ATTENTION}.transformer_blocks.0.attn1.to_q.weight"
OUT_BIAS = f"{ATTENTION}.transformer_blocks.0.attn2.to_out.0.bias"
CONV = f"{ATTENTION}.proj_in.weight"
FC1 = "clip_l.text_model.encoder.layers.0.mlp.fc1.weight"
NORM = "clip_l.text_model.final_layer_norm.weight"
NATIVE = {ATTENTION: "input_blocks.1.1", "down_blocks.0.resnets.0.conv1": "input_blocks.1.0.in_layers.2"}
"""Some of the original names; the rest stay as they are, which is enough to tell the two spellings apart."""


def tiny_base() -> Base:
    """The model, with names of the original kind for its first attention."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32),
        layers_per_block=1,
        cross_attention_dim=768,
        attention_head_dim=8,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    sizes: dict[str, Any] = {"vocab_size": 64, "hidden_size": 768, "intermediate_size": 64, "num_hidden_layers": 1}
    text = CLIPTextModel(CLIPTextConfig(**sizes, num_attention_heads=2, bos_token_id=0, eos_token_id=1))
    base = pipeline_base(unet, {"clip_l": text}, "abc")
    native = {name: _native(name) for part, name in base.shapes if part == ADAPTERS}
    return Base(base.family, base.sites, base.shapes, base.read, native, "abc")


def _native(name: str) -> str:
    for ours, theirs in NATIVE.items():
        if name.startswith(f"{ours}."):
            return name.replace(ours, theirs, 1)
    return name


def thin_edit(base: Base, *owners: Owner, rank: int = 2) -> dict[Owner, tuple[Tensor, Tensor]]:
    """Factors up `[o, r]` and down `[r, d]` for weights, from a fixed seed."""
    draw = torch.Generator().manual_seed(1)
    found = {}
    for owner in owners:
        shape = base.shapes[owner]
        down = torch.randn(rank, int(torch.tensor(shape[1:]).prod()), generator=draw)
        found[owner] = torch.randn(shape[0], rank, generator=draw), down
    return found


def merged(base: Base, factors: Mapping[Owner, tuple[Tensor, Tensor]]) -> dict[Owner, Tensor]:
    """The edited weights."""
    return {owner: base.read(owner) + (up @ down).reshape(base.shapes[owner]) for owner, (up, down) in factors.items()}


def full_unet(base: Base, edited: Mapping[Owner, Tensor]) -> dict[str, Tensor]:
    """Every weight of the denoiser, some of them edited, by the pack's names."""
    names = [name for part, name in base.shapes if part == ADAPTERS]
    return {name: edited.get((ADAPTERS, name), base.read((ADAPTERS, name))) for name in names}


def full_text(base: Base, edited: Mapping[Owner, Tensor]) -> dict[str, Tensor]:
    """Every weight of the text encoder as transformers saves it."""
    names = [name for part, name in base.shapes if part == TEXT]
    found = {name: edited.get((TEXT, name), base.read((TEXT, name))) for name in names}
    return {name.removeprefix("clip_l."): value for name, value in found.items()}


def receler(base: Base) -> dict[str, Tensor]:
    """Networks behind the first attention and the one in the middle, as Receler names them."""
    draw = torch.Generator().manual_seed(2)
    shapes = {"down.weight": (4, 32), "down.bias": (4,), "up.weight": (32, 4), "up.bias": (32,)}
    places = (ATTENTION, "mid_block.attentions.0")
    return {f"{place}.{name}": torch.randn(s, generator=draw) for place in places for name, s in shapes.items()}


def lora(
    factors: Mapping[Owner, tuple[Tensor, Tensor]],
    spell: Callable[[Owner], str],
    suffixes: tuple[str, str],
    shapes: Mapping[Owner, tuple[int, ...]],
    alpha: float | None = None,
) -> dict[str, Tensor]:
    """A LoRA of factors, divided by what alpha / r will multiply them with."""
    found = {}
    for owner, (up, down) in factors.items():
        rank, shape = len(down), shapes[owner]
        ones = [1] * (len(shape) - 2)
        scale = 1.0 if alpha is None else rank / alpha
        found[f"{spell(owner)}{suffixes[0]}"] = (up * scale).reshape(*up.shape, *ones)
        found[f"{spell(owner)}{suffixes[1]}"] = down.reshape(rank, *shape[1:])
        if alpha is not None:
            found[f"{spell(owner)}.alpha"] = torch.tensor(alpha)
    return found
