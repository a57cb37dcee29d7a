"""A diffusers pipeline as a host: its sites, its text encoder, and edits written into its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .registry import families
from .result import ContextOperator
from .sites import Family, Site, find_sites
from .task import Encode, EncodedPrompt

_BATCH = 64


def unet_sites(unet: nn.Module) -> tuple[Family, tuple[Site, ...]]:
    """Recognise a diffusers UNet and list its sites; FamilyError where it has none that are known."""
    shapes = {name: tuple(value.shape) for name, value in unet.named_parameters()}
    return find_sites(shapes, families().values())


def text_encoder(tokenizer: Any, model: Any) -> Encode:
    """An encoder over a CLIP tokenizer and CLIPTextModel: final states of all positions, each prompt once."""
    known: dict[str, EncodedPrompt] = {}

    @torch.no_grad()
    def encode(prompts: list[str]) -> list[EncodedPrompt]:
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
        for start in range(0, len(missing), _BATCH):
            chunk = missing[start : start + _BATCH]
            ids: Tensor = tokenizer(
                chunk, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
            ).input_ids
            ends = (ids == tokenizer.eos_token_id).int().argmax(1)
            states = model(ids).last_hidden_state.float()
            for prompt, state, end in zip(chunk, states, ends.tolist(), strict=True):
                known[prompt] = EncodedPrompt(prompt, state, end - 1)
        return [known[prompt] for prompt in prompts]

    return encode


@torch.no_grad()
def write_operator(unet: nn.Module, operator: ContextOperator, strength: float = 1.0) -> dict[str, Tensor]:
    """The edited weights of every site, `W (I + s M)`, by parameter name; `unet` itself is not changed.

    Load them with `unet.load_state_dict(weights, strict=False)`.
    """
    _, sites = unet_sites(unet)
    parameters = dict(unet.named_parameters())
    edited = {}
    for site in sites:
        weight = parameters[site.name].float()
        up, down = operator.factors(weight)
        edited[site.name] = (weight + strength * (up @ down)).to(parameters[site.name].dtype)
    return edited
