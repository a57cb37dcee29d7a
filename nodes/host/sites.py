"""Sites of a loaded model, from the names and shapes of its parameters."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher

from ...erasers.registry import families
from ...erasers.sites import Family, Site, find_sites


def model_sites(model: ModelPatcher) -> tuple[Family, tuple[Site, ...]]:
    """Recognise a MODEL and list its sites; FamilyError where it has none that are known."""
    shapes = {name: tuple(value.shape) for name, value in model.model_state_dict("diffusion_model.").items()}
    return find_sites(shapes, families().values())
