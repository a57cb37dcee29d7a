"""Every family as the host builds it: recognised at true size and reduced, with its weights' names and LoRA keys."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
import torch
from lethe.erasers.errors import FamilyError
from lethe.erasers.registry import families
from lethe.erasers.sites import pooled_site

NAMES = sorted(tiny_models.PLANS)
REFUSED = {
    "Anima": "an adapter inside the model mixes text features with the ids of another tokenizer's tokens",
    "HiDreamO1": "the model reads token ids, and is its own text encoder",
    "Krea2": "text passes a transformer across twelve layers' features before any weight that all of them share",
    "LTXAV": "text passes connectors of many layers, and becomes two prompts, for pictures and for sound",
    "Lens": "the empty prompt has no features at all; its tokenizer comes with the checkpoint",
    "MiniMaxH3": "draws pictures and sound as one; text is refined before the model is given it",
    "PixelDiTT2I": "weights are renamed when a checkpoint is read, and a prompt keeps its last tokens alone",
    "Stable_Cascade_B": "a decoder of the other stage, which reads pooled text alone",
    "Stable_Cascade_C": "one of two models that are told the prompt one after the other",
}
"""Host classes that draw what a prompt says, and are no family's, with what is different about them."""
OTHERS = {
    *("StableAudio", "StableAudio3", "ACEStep", "ACEStep15"),
    *("Hunyuan3Dv2", "Hunyuan3Dv2mini", "Hunyuan3Dv2_1", "TripoSplat", "Stable_Zero123", "SV3D_u", "SV3D_p"),
    *("SVD_img2vid", "SD_X4Upscaler", "SeedVR2", "PiD"),
    *("LotusD", "DepthAnything3", "RT_DETR_v4", "SAM3", "SAM31", "WAN21_FlowRVS"),
}
"""Those for sound, for solids, for pictures from pictures alone, and for what is seen in pictures."""


def _found(model: Any) -> Any:
    from lethe.nodes.host.sites import model_sites

    return model_sites(model)


def test_every_family_has_a_plan() -> None:
    assert {*NAMES, "demo"} == set(families())


@pytest.mark.parametrize("name", NAMES)
def test_a_full_size_model_is_recognised(comfy: Any, name: str) -> None:
    model, family = tiny_models.full_model(name), families()[name]
    found = _found(model)
    assert found.family.name == name
    assert found.family.stream == family.stream
    assert {site.width for site in found.sites} == {family.width}
    state = model.model.state_dict()
    for site in found.sites:
        assert tuple(state[found.key(site.name)].shape) == (site.fan_out, site.width)
    if family.pooled_stream:
        assert found.shapes[pooled_site(found.shapes, family)][1] >= family.pooled_width
    else:
        with pytest.raises(FamilyError, match="pooled"):
            pooled_site(found.shapes, family)


@pytest.mark.parametrize("name", NAMES)
def test_the_full_size_is_that_which_the_host_detects(comfy: Any, name: str) -> None:
    import comfy.model_detection

    plan = tiny_models.PLANS[name]
    config: Any = comfy.model_detection.model_config_from_unet(
        tiny_models.full_model(name).model.diffusion_model.state_dict(), ""
    )
    assert type(config).__name__ == plan.config
    assert plan.config in families()[name].hosts
    for key, value in plan.full.items():
        found = config.unet_config[key]
        assert (list(found) if isinstance(value, tuple) else found) == (
            list(value) if isinstance(value, tuple) else value
        )


@pytest.mark.parametrize("name", NAMES)
def test_stock_loaders_take_the_names_of_the_sites(comfy: Any, name: str) -> None:
    import comfy.lora

    model = tiny_models.full_model(name)
    found, keys = _found(model), comfy.lora.model_lora_keys_unet(model.model, {})
    for site in found.sites:
        key = found.key(site.name)
        assert keys[key.removesuffix(".weight")] == key
    for alias in families()[name].lora:
        assert keys[alias] == found.key(found.sites[0].name)


@pytest.mark.parametrize("name", NAMES)
def test_a_reduced_model_is_recognised(comfy: Any, name: str) -> None:
    from lethe.nodes.host.model import HostModel

    model = tiny_models.tiny_model(name)
    found, family = _found(model), families()[name]
    assert found.family.name == name
    assert all(bool(torch.isfinite(value).all()) for value in model.model.parameters())
    assert HostModel(model, None).prediction() in family.prediction


def test_host_classes_are_there(comfy: Any) -> None:
    import comfy.supported_models

    named = [host for family in families().values() for host in family.hosts]
    assert all(hasattr(comfy.supported_models, host) for host in named)


def test_every_class_of_the_host_is_a_familys_or_known_to_be_none(comfy: Any) -> None:
    import comfy.supported_models

    ours = {host for family in families().values() for host in family.hosts}
    assert {kind.__name__ for kind in comfy.supported_models.models} == ours | REFUSED.keys() | OTHERS
    assert not ours & (REFUSED.keys() | OTHERS)


@pytest.mark.parametrize("kind", sorted(REFUSED.keys() - {"Anima"}))
def test_a_model_of_no_family_is_refused_with_what_is_supported(comfy: Any, kind: str) -> None:
    import comfy.supported_models
    from comfy.model_patcher import ModelPatcher

    made = getattr(comfy.supported_models, kind)
    config, cpu = made(dict(made.unet_config)), torch.device("cpu")
    config.set_inference_dtype(torch.float16, None)
    model = ModelPatcher(config.get_model({}, "", device=torch.device("meta")), cpu, cpu)
    with pytest.raises(FamilyError, match=r"no text embedder that is known.*Supported families.*Stable Diffusion XL"):
        _found(model)


def test_a_relative_with_another_way_for_text_is_no_member(comfy: Any) -> None:
    """LTX-2 and Anima look like LTX-Video and Cosmos, but read what an adapter makes of the text."""
    for name, mark in (("ltxv", "audio_adaln_single.linear.weight"), ("cosmos2", "llm_adapter.embed.weight")):
        model = tiny_models.tiny_model(name)
        first, *others = mark.split(".")
        module = torch.nn.Module()
        module.register_parameter("weight", torch.nn.Parameter(torch.zeros(2, 2), requires_grad=False))
        for part in reversed(others[:-1]):
            outer = torch.nn.Module()
            outer.add_module(part, module)
            module = outer
        model.model.diffusion_model.add_module(first, module)
        with pytest.raises(FamilyError):
            _found(model)
