"""The sites of a loaded MODEL, and what the host calls each weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import comfy.utils
from comfy.model_patcher import ModelPatcher

from ...erasers.errors import FamilyError
from ...erasers.registry import families
from ...erasers.sites import Family, Further, Site, find_sites, list_sites

_PREFIX = "diffusion_model."


@dataclass(frozen=True)
class HostSites:
    """A recognised MODEL.

    Attributes:
        family: what it is.
        sites: the weights that read text features, under the pack's names for them.
        shapes: every weight's shape by the pack's name.
        keys: the host's name of every weight by the pack's.
        further: the family's further features that this model reads, with the weights that read them.
    """

    family: Family
    sites: tuple[Site, ...]
    shapes: Mapping[str, tuple[int, ...]]
    keys: Mapping[str, str]
    further: Mapping[Further, tuple[Site, ...]] = field(default_factory=dict)

    def key(self, name: str) -> str:
        """The host's name of a weight; FamilyError where the model has no such weight."""
        if name not in self.keys:
            raise FamilyError(f"The model has no weight '{name}'.", "Load the model that the eraser was made for.")
        return self.keys[name]


def model_sites(model: ModelPatcher) -> HostSites:
    """Recognise a MODEL and list its sites; FamilyError where it has none that are known."""
    state = model.model_state_dict(_PREFIX)
    config = getattr(getattr(model.model, "model_config", None), "unet_config", {})
    # The host gives `label_emb` two names, in an order that differs from run to run; SDXL's, `add_embedding`, is kept.
    pairs = sorted(comfy.utils.unet_to_diffusers(config).items(), reverse=True)
    known = {_PREFIX + theirs: ours for ours, theirs in pairs}
    names = {key: known.get(key, key.removeprefix(_PREFIX)) for key in state}
    # A state dict holds quantised weights as they are packed, which is not always their shape.
    own = dict(model.model.named_parameters())
    shapes = {names[key]: tuple(own.get(key, value).shape) for key, value in state.items()}
    family, sites = find_sites(shapes, families().values())
    listed = "\n".join(shapes)
    further = {own: list_sites(shapes, family.seen_by(own), listed) for own in family.further}
    read = {own: found for own, found in further.items() if found}
    return HostSites(family, sites, shapes, {name: key for key, name in names.items()}, read)
