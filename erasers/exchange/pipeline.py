"""A diffusers pipeline as the model that files are read against and written for."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ..diffusers_host import named_tower, unet_sites
from .base import ADAPTERS, TEXT, Base, Owner


def pipeline_base(unet: nn.Module, text_models: Mapping[str, nn.Module], encoder: str = "") -> Base:
    """A UNet as diffusers loads it, with its text encoders by stream, e.g. `{"clip_l": pipeline.text_encoder}`.

    Files under the names of the original checkpoints cannot be read against it: diffusers does not know them.
    """
    family, sites = unet_sites(unet)
    found: dict[Owner, nn.Parameter] = {(ADAPTERS, name): value for name, value in unet.named_parameters()}
    for stream, model in text_models.items():
        found |= {(TEXT, f"{stream}.{name}"): value for name, value in named_tower(model).named_parameters()}
    shapes = {owner: tuple(value.shape) for owner, value in found.items()}
    return Base(family, sites, shapes, lambda owner: found[owner].detach().float().cpu(), encoder=encoder)
