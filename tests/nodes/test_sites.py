"""Sites of full-size models as the host builds them, without their weights."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from host_configs import UNET, XL
from lethe.erasers.diffusers_host import unet_sites
from lethe.kernels.bench.unets import UNETS


@pytest.mark.parametrize(("name", "family", "blocks"), [("SD15", "sd1", 16), ("SD20", "sd2", 16), ("SDXL", "sdxl", 70)])
def test_full_size_models_are_recognised(comfy, name: str, family: str, blocks: int) -> None:  # type: ignore[no-untyped-def]
    import comfy.supported_models
    from comfy.model_patcher import ModelPatcher
    from lethe.nodes.host.sites import model_sites

    layout = UNET | (XL if name == "SDXL" else {})
    config = getattr(comfy.supported_models, name)(layout | getattr(comfy.supported_models, name).unet_config)
    config.set_inference_dtype(torch.float16, None)
    cpu = torch.device("cpu")
    patcher = ModelPatcher(config.get_model({}, device="meta"), cpu, cpu)
    found = model_sites(patcher)
    assert found.family.name == family
    assert len(found.sites) == 2 * blocks
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNETS[family])
    assert {site.name for site in found.sites} == {site.name for site in unet_sites(unet)[1]}
    for site in found.sites:
        assert found.key(site.name).startswith("diffusion_model.")
        assert found.shapes[site.name] == tuple(unet.get_parameter(site.name).shape)
