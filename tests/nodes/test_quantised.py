"""Models that the host keeps quantised, of SDXL's and Flux's classes: erased, guarded, trained, stacked, exported."""

from __future__ import annotations

from typing import Any

import pytest
import quantised
import tiny_models
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.stack import Stack
from torch import Tensor

PROMPT, OTHER = "a photo of a cat on a mat", "a tree"
CONCEPTS = ConceptList(preserve=(OTHER,)).with_concept(Concept("cat", "dog"))
UCE = {"method": "uce", "templates": "none"}
ROUGH = {"float8_e4m3fn": 0.25, "int8_tensorwise": 0.25, "mxfp8": 0.25, "nvfp4": 0.9}
"""What a weight loses of a small change when the host rounds it to the format again, of the change."""


FAMILIES = ("sdxl", "flux")


@pytest.fixture(scope="module")
def parts(comfy: Any) -> Any:
    """MODEL in float32 and CLIP by family."""
    with torch.inference_mode():
        return {name: (tiny_models.tiny_model(name), tiny_models.tiny_clip(name)) for name in FAMILIES}


@pytest.fixture(params=[(name, form) for name in FAMILIES for form in quantised.FORMATS], ids="-".join)
def case(parts: Any, request: pytest.FixtureRequest) -> Any:
    """Family, format, MODEL and CLIP."""
    name, form = request.param
    model, clip = parts[name]
    with torch.inference_mode():
        return name, form, quantised.quantised(model, form), clip


def share(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_an_edit_a_stack_and_a_lora_act_on_it(case: Any) -> None:
    from lethe.nodes.erase import LetheApply, LetheErase
    from lethe.nodes.files import LetheSave
    from lethe.nodes.stack import LetheMerge

    import nodes

    name, form, model, clip = case
    before = quantised.kept(model.model)

    def draw(changed: Any, prompt: str = PROMPT, reading: Any = clip) -> Tensor:
        return tiny_models.sample(name, changed, reading, prompt)

    with torch.inference_mode():
        hooked, _, eraser, _ = LetheErase.execute(model, clip, CONCEPTS, 1.0, "hook", False, method=UCE).result
        written = LetheApply.execute(model, clip, eraser, 1.0, "weights").result[0]
        merged = LetheMerge.execute(Stack().with_erasers([eraser], 1.0), model, clip, {"mode": "gated"}).result[0]
        gated, reading = LetheApply.execute(model, clip, merged, 1.0, "hook").result
        saved = LetheSave.execute(eraser, "quantised", True, layout={"layout": "ComfyUI LoRA"}, model=model, clip=clip)
        lora = nodes.LoraLoader().load_lora(model, clip, saved.result[1], 1.0, 1.0)[0]
    plain, asked = draw(model), draw(hooked)
    moved = share(asked, plain)
    assert moved > 0.05
    # The host rounds a patched weight to the format again, which the edit of features is spared.
    assert share(draw(written), asked) < ROUGH[form] * moved
    assert share(draw(lora), draw(written)) < 0.05 * moved
    assert share(draw(gated, reading=reading), asked) < 1e-4 * moved
    assert torch.equal(draw(gated, OTHER, reading), draw(model, OTHER))
    assert torch.equal(draw(model), plain)
    assert quantised.same_bits(before, quantised.kept(model.model))


def test_a_guard_and_reweighted_words_act_on_it(case: Any) -> None:
    from lethe.nodes.attention import LetheAttention
    from lethe.nodes.guard import LetheGuard

    name, _, model, clip = case
    before = quantised.kept(model.model)
    plain = tiny_models.sample(name, model, clip, PROMPT)
    with torch.inference_mode():
        guarded = LetheGuard.execute(model, clip, CONCEPTS, 0.0, guard={"guard": "sld", "strength": "max"}).result[:2]
        muted = LetheAttention.execute(model, clip, "cat: 0", 0.0, 0.0, 1.0, "all", "scale").result[:2]
    for changed, reading in (guarded, muted):
        found = tiny_models.sample(name, changed, reading, PROMPT)
        assert torch.isfinite(found).all()
        assert share(found, plain) > 1e-4
    assert torch.equal(tiny_models.sample(name, model, clip, PROMPT), plain)
    assert quantised.same_bits(before, quantised.kept(model.model))


@pytest.mark.parametrize("form", ["float8_e4m3fn", "int8_tensorwise"])
@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_train_beside_it(parts: Any, name: str, form: str) -> None:
    from lethe.nodes.train import LetheTrain

    clip, sites = parts[name][1], "text stream" if name == "flux" else "cross"
    esd = {"recipe": "esd", "templates": "none", "sampling_steps": 2, "trajectories": 2, "form": "low rank"}
    with torch.inference_mode():
        model = quantised.quantised(parts[name][0], form)
        before, plain = quantised.kept(model.model), tiny_models.sample(name, model, clip, PROMPT)
        chosen = {"steps": 3, "learning_rate": 0.05, "rank": 2, "batch": 2, "look_every": 0, "pixels": 64}
        trained = LetheTrain.execute(model, clip, CONCEPTS, recipe={**esd, "sites": sites}, **chosen).result
    assert all(0 < loss < float("inf") for loss in trained[3]["loss"])
    assert share(tiny_models.sample(name, trained[0], clip, PROMPT), plain) > 1e-3
    assert torch.equal(tiny_models.sample(name, model, clip, PROMPT), plain)
    assert quantised.same_bits(before, quantised.kept(model.model))
