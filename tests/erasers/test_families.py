"""Families as rows of facts: what they say of themselves fits together, and models are told apart by names alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from lethe.erasers import capabilities
from lethe.erasers.capabilities import capability_table
from lethe.erasers.errors import FamilyError
from lethe.erasers.registry import families
from lethe.erasers.sites import CAPABILITIES, NO, TESTED, WEIGHTS, find_sites, list_sites

SITES = {
    "flux": {"txt_in.weight": (3072, 4096), "vector_in.in_layer.weight": (3072, 768)},
    "chroma": {"txt_in.weight": (3072, 4096), "distilled_guidance_layer.in_proj.weight": (5120, 64)},
    "flux2": {"txt_in.weight": (6144, 15360), "double_stream_modulation_txt.lin.weight": (36864, 6144)},
    "ltxv": {
        "caption_projection.linear_1.weight": (2048, 4096),
        "transformer_blocks.0.attn2.to_k.weight": (2048, 2048),
    },
    "lumina2": {"cap_embedder.1.weight": (2304, 2304), "context_refiner.0.attention.qkv.weight": (1, 1)},
    "z_image": {"cap_embedder.1.weight": (3840, 2560), "context_refiner.0.attention.qkv.weight": (1, 1)},
    "cosmos2": {"blocks.0.cross_attn.k_proj.weight": (8, 1024), "blocks.0.cross_attn.v_proj.weight": (8, 1024)},
    "ovis_image": {"txt_in.weight": (3072, 2048), "double_blocks.0.txt_mlp.gate_proj.weight": (12288, 3072)},
    "hunyuan_image": {"txt_in.input_embedder.weight": (3584, 3584)},
    "hunyuan_video": {"txt_in.input_embedder.weight": (3072, 4096)},
    "hunyuan_video15": {"txt_in.input_embedder.weight": (2048, 3584), "cond_type_embedding.weight": (3, 2048)},
    "sdxl": {"down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight": (640, 2048)},
}


@pytest.mark.parametrize("name", sorted(SITES))
def test_models_are_told_apart_by_names_and_shapes(name: str) -> None:
    family, sites = find_sites(SITES[name], families().values())
    assert family.name == name
    assert all(site.width == family.width for site in sites)


def test_what_comes_after_a_caption_projection_is_no_unet() -> None:
    """LTX-Video's cross-attentions have the name and the width of those of SDXL."""
    with pytest.raises(FamilyError, match="no cross-attention"):
        find_sites({"transformer_blocks.0.attn2.to_k.weight": (2048, 2048)}, families().values())


def test_keys_and_values_are_told_apart_where_they_are() -> None:
    assert [site.role for site in find_sites(SITES["cosmos2"], families().values())[1]] == ["k", "v"]
    assert [site.role for site in find_sites(SITES["flux"], families().values())[1]] == [""]


def test_sites_are_listed_without_the_rest_of_the_model() -> None:
    assert [site.name for site in list_sites({"cap_embedder.1.weight": (8, 2560)}, families()["z_image"])]


@pytest.mark.parametrize("name", sorted(families()))
def test_facts_fit_together(name: str) -> None:
    family = families()[name]
    parts = [part.split("+") for part in family.stream.split("|")]
    widths = {encoder.stream: encoder.width for encoder in family.encoders}
    assert all(stream in widths for part in parts for stream in part)
    assert max(sum(widths[stream] for stream in part) for part in parts) == family.width
    assert all(widths[own.encoder] == own.width for own in family.further)
    assert len(family.widths) == 1 + bool(family.pooled_stream) + len(family.further)
    assert bool(family.pooled_stream) == bool(family.pooled_width) == bool(family.pooled_site)
    assert set(family.can) <= set(CAPABILITIES)
    assert all(verdict.why.endswith(".") for verdict in family.can.values() if verdict.why or verdict.state == NO)


def test_what_cannot_be_done_is_refused_with_its_reason() -> None:
    assert families()["qwen_image"].verdict(WEIGHTS).state == NO
    with pytest.raises(FamilyError, match=r"Qwen-Image: its text passes a norm"):
        families()["qwen_image"].require(WEIGHTS)
    with pytest.raises(FamilyError, match=r"HunyuanDiT: the weights that read one text encoder"):
        families()["hunyuan_dit"].require(WEIGHTS)
    for capability in CAPABILITIES:
        families()["demo"].require(capability)


def test_the_table_holds_every_family_and_reason() -> None:
    table = capability_table()
    rows = {line.split("|")[1].strip(): line for line in table.splitlines() if line.startswith("|")}
    for family in families().values():
        cells = [cell.strip().split(" ")[0] for cell in rows[family.title].split("|")[3:-1]]
        assert cells == [family.verdict(name).state for name in CAPABILITIES]
        assert all(family.verdict(name).why[1:] in table for name in CAPABILITIES)
    assert {TESTED, NO} <= set(table.replace("|", " ").split())


def test_the_readme_has_the_table_of_models() -> None:
    page = (Path(capabilities.__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert page.split("<!-- models -->")[1].split("<!-- /models -->")[0].strip() == capability_table().strip()
