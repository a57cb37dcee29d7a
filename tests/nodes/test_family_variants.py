"""Host classes beside that of a family's plan: the same text ways, so the same sites, and edits act on them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny_models
import torch
from lethe.erasers.registry import families
from lethe.erasers.result import ContextOperator, Eraser, Recipe
from lethe.erasers.sites import HOOK, WEIGHTS
from torch import Tensor

VARIANTS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "SD15_instructpix2pix": ("sd1", {"in_channels": 8}, ()),
    "SD21UnclipL": ("sd2", {"adm_in_channels": 1536, "num_classes": "sequential"}, ()),
    "SD21UnclipH": ("sd2", {"adm_in_channels": 2048, "num_classes": "sequential"}, ()),
    "SDXL_instructpix2pix": ("sdxl", {"in_channels": 8}, ()),
    "FluxInpaint": ("flux", {"in_channels": 96}, ()),
    "FluxSchnell": ("flux", {"guidance_embed": False}, ()),
    "HunyuanVideoI2V": ("hunyuan_video", {"in_channels": 33}, ()),
    "HunyuanVideoSkyreelsI2V": ("hunyuan_video", {"in_channels": 32}, ()),
    "HunyuanVideo15_SR_Distilled": ("hunyuan_video15", {"in_channels": 98}, ()),
    "HunyuanImage21Refiner": (
        "hunyuan_image",
        {"in_channels": 128, "patch_size": [1, 1, 1], "axes_dim": [8, 12, 12]},
        (64, 1, 4, 4),
    ),
    "Kandinsky5Image": ("kandinsky5", {"visual_embed_dim": 64, "rope_scale_factor": (1.0, 1.0, 1.0)}, ()),
    "CosmosI2V": ("cosmos1", {"in_channels": 17}, ()),
    "CosmosI2VPredict2": ("cosmos2", {"in_channels": 17}, ()),
    "WAN21_CausalAR_T2V": ("wan", {}, ()),
    "WAN21_I2V": ("wan", {"model_type": "i2v", "in_dim": 36}, ()),
    "WAN21_FunControl2V": ("wan", {"model_type": "i2v", "in_dim": 48}, ()),
    "WAN21_Camera": ("wan", {"model_type": "camera", "in_dim": 32}, ()),
    "WAN22_Camera": ("wan", {"model_type": "camera_2.2", "in_dim": 36}, ()),
    "WAN21_Vace": ("wan", {"model_type": "vace", "vace_layers": 1, "vace_in_dim": 96}, ()),
    "WAN22_T2V": ("wan", {"in_dim": 48, "out_dim": 48}, (48, 1, 4, 4)),
    "WAN21_HuMo": ("wan", {"model_type": "humo", "in_dim": 36}, ()),
    "WAN22_Animate": ("wan", {"model_type": "animate", "in_dim": 36}, ()),
    "WAN22_S2V": ("wan", {"model_type": "s2v"}, ()),
    "WAN21_SCAIL": ("wan", {"model_type": "scail", "in_dim": 20}, ()),
    "WAN21_SCAIL2": ("wan", {"model_type": "scail2", "in_dim": 20}, ()),
    "WAN22_WanDancer": ("wan", {"model_type": "wandancer", "in_dim": 36}, ()),
    "PixArtAlpha": ("pixart", {"image_model": "pixart_alpha", "micro_condition": True, "hidden_size": 48}, ()),
    "ChromaRadiance": (
        "chroma",
        {"image_model": "chroma_radiance", "in_channels": 3, "out_channels": 3, "patch_size": 16}
        | {"nerf_hidden_size": 64, "nerf_mlp_ratio": 4, "nerf_depth": 4, "nerf_max_freqs": 8, "nerf_tile_size": 512}
        | {"nerf_final_head_type": "conv", "nerf_embedder_dtype": torch.float32}
        | {"use_x0": False, "use_sequential_txt_ids": False},
        (3, 64, 64),
    ),
}
"""By host class: the family, what differs in its configuration, and the shape of a latent where that differs."""


@pytest.mark.parametrize("kind", sorted(VARIANTS))
def test_an_operator_acts_in_both_forms_on_a_relative(comfy: Any, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    import comfy.sample
    from lethe.nodes.host.patcher import apply_to_model
    from lethe.nodes.host.sites import model_sites

    name, changes, latent = VARIANTS[kind]
    family, plan = families()[name], tiny_models.PLANS[name]
    usual = model_sites(tiny_models.tiny_model(name))
    other = replace(plan, config=kind, full={**plan.full, **changes}, tiny={**plan.tiny, **changes})
    monkeypatch.setitem(tiny_models.PLANS, name, other)
    model = tiny_models.tiny_model(name)
    found = model_sites(model)
    assert kind in family.hosts
    assert found.family.name == name
    assert [site.name for site in found.sites] == [site.name for site in usual.sites]
    made = torch.Generator().manual_seed(5)
    states = torch.randn(1, 12, family.width, generator=made)
    down, up = states[0, :2] / family.width, torch.randn(family.width, 2, generator=made)
    eraser = Eraser(
        Recipe("uce", {}, ({"text": "cat"},), (), name, ""), {family.stream: ContextOperator(down=down, up=up)}
    )
    noise = torch.randn(1, *(latent or plan.latent), generator=made)

    def draw(changed: Any) -> Tensor:
        given = [[states, {"pooled_output": torch.zeros(1, family.pooled_width or 1280)}]]
        with torch.inference_mode():
            return comfy.sample.sample(
                changed, noise, 1, 1.0, "euler", "normal", given, given, torch.zeros_like(noise), disable_pbar=True
            )

    forms = ((0, HOOK), (1, HOOK), (1, WEIGHTS))
    plain, hooked, written = (draw(apply_to_model(model, eraser, strength, form)) for strength, form in forms)
    assert torch.equal(plain, draw(model))
    moved = float((hooked - plain).norm() / plain.norm())
    assert moved > 1e-3
    assert float((written - hooked).norm() / plain.norm()) < 1e-3 * moved
