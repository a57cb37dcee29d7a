"""Guards beside what else a graph puts on prompts and models: control nets, regions, several prompts, several devices.

Each acts in such company where its gate opens, and where it is shut the picture is bit for bit that of the company.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.guard import Guarding, Look
from lethe.erasers.registry import guards
from torch import Tensor

BALL = ConceptList(lists=("demo-world",)).with_concept(Concept("ball", "box"))
PROMPT, OTHER = "a large red ball, flat style, on paper", "a large red tree, flat style, on paper"
SECOND = "a small blue star"
GATE = 0.45
RELATIVES = ("a_star", "elucd", "erase_and_check", "leace", "perp_neg", "steerers", "t2i_zero")
"""Guards that act by the same parts as others do, which are always run."""
NAMES = [pytest.param(name, marks=[pytest.mark.slow] if name in RELATIVES else []) for name in guards()]
FEWER: dict[str, dict[str, Any]] = {
    "elucd": {"steps": 3, "pictures": 1},
    "h_space": {"steps": 3, "pictures": 2},
    "negtome": {"threshold": 0.5},
    "scaling": {"rounds": 1},
    "steerers": {"steps": 20},
}
"""Settings that keep a training to seconds, and that let a guard act on a few steps."""
Company = Callable[[Any, Any, Any, Any], tuple[Any, Any, Any]]
"""Adds to a MODEL, its CLIP, a prompt and a negative as CONDITIONING: the MODEL and both prompts."""


@pytest.fixture(scope="module")
def guarded(demo: Any) -> Callable[[str], Any]:
    """MODEL and CLIP behind a guard with a gate, by the guard's name."""
    from lethe.nodes.guard import LetheGuard

    made: dict[str, Any] = {}

    def behind(name: str) -> Any:
        if name not in made:
            mask = torch.nn.functional.pad(torch.ones(1, 64, 64), (32, 32, 32, 32))
            given = {"images": torch.full((1, 128, 128, 3), 0.5), "vae": demo[2], "mask": mask}
            chosen = {"guard": name, **FEWER.get(name, {})}
            with torch.inference_mode():
                made[name] = LetheGuard.execute(demo[0], demo[1], BALL, GATE, guard=chosen, **given).result[:2]
        return made[name]

    return behind


@pytest.fixture(scope="module")
def plain(demo: Any) -> Callable[[Company, str], Tensor]:
    """What the model draws without a guard, in some company."""
    drawn: dict[Any, Tensor] = {}

    def draw(company: Company, prompt: str) -> Tensor:
        if (company, prompt) not in drawn:
            drawn[company, prompt] = sample(demo, company, prompt)
        return drawn[company, prompt]

    return draw


def sample(pair: Any, company: Company, prompt: str = PROMPT, cfg: float = 4.0, steps: int = 3) -> Tensor:
    import nodes

    with torch.inference_mode():
        said, unsaid = (nodes.CLIPTextEncode().encode(pair[1], text)[0] for text in (prompt, ""))
        model, said, unsaid = company(pair[0], pair[1], said, unsaid)
        latent = nodes.EmptyLatentImage().generate(128, 128, 1)[0]
        found = nodes.KSampler().sample(model, 3, steps, cfg, "ddim", "normal", said, unsaid, latent)
        return found[0]["samples"]


def controlled(model: Any, clip: Any, said: Any, unsaid: Any) -> tuple[Any, Any, Any]:
    """A control net of the model's own shape with random weights, as the host's advanced node applies it."""
    import comfy.controlnet
    from comfy.cldm import cldm

    import nodes

    torch.manual_seed(0)
    shape = {name: own for name, own in model.model.model_config.unet_config.items() if name != "out_channels"}
    net = cldm.ControlNet(hint_channels=3, **shape)
    for own in net.parameters():
        own.requires_grad_(False).copy_(torch.randn(own.shape) * 0.05)
    control = comfy.controlnet.ControlNet(net, load_device=model.load_device)
    hint = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(1))
    said, unsaid = nodes.ControlNetApplyAdvanced().apply_controlnet(said, unsaid, control, hint, 1.0, 0.0, 1.0)
    return model, said, unsaid


def masked(model: Any, clip: Any, said: Any, unsaid: Any) -> tuple[Any, Any, Any]:
    """The prompt in one half, another one in the other, and a negative for one half."""
    import nodes

    left, right = torch.zeros(1, 128, 128), torch.zeros(1, 128, 128)
    left[..., :64], right[..., 64:] = 1, 1
    second = nodes.CLIPTextEncode().encode(clip, SECOND)[0]
    (one,), (other,) = (
        nodes.ConditioningSetMask().append(own, mask, "default", 1.0) for own, mask in ((said, left), (second, right))
    )
    (against,) = nodes.ConditioningSetMask().append(
        nodes.CLIPTextEncode().encode(clip, "blue")[0], left, "default", 1.0
    )
    return model, one + other, unsaid + against


def placed(model: Any, clip: Any, said: Any, unsaid: Any) -> tuple[Any, Any, Any]:
    """The prompt for the whole picture, and another one for an area of it."""
    import nodes

    second = nodes.CLIPTextEncode().encode(clip, SECOND)[0]
    (area,) = nodes.ConditioningSetArea().append(second, 64, 96, 32, 16, 0.8)
    return model, said + area, unsaid


def several(model: Any, clip: Any, said: Any, unsaid: Any) -> tuple[Any, Any, Any]:
    """Two prompts and two negatives at once, one of each for a part of sampling."""
    import nodes

    second, against = (nodes.CLIPTextEncode().encode(clip, text)[0] for text in (SECOND, "blue"))
    (late,) = nodes.ConditioningSetTimestepRange().set_range(second, 0.3, 1.0)
    return model, said + late, unsaid + against


def spread(model: Any, clip: Any, said: Any, unsaid: Any) -> tuple[Any, Any, Any]:
    """The host's split of prompts over devices: a second one under another name, on the same processor."""
    import comfy.multigpu
    from lethe.nodes.demo import LetheDemoModel

    model = model.clone()
    model.cached_patcher_init = (lambda: LetheDemoModel.execute().result[0], ())
    other = model.deepclone_multigpu(new_load_device=torch.device("cpu:1"))
    other.is_multigpu_base_clone = True
    model.set_additional_models("multigpu", [other])
    model.match_multigpu_clones()
    comfy.multigpu.GPUOptionsGroup().register(model)
    return model, said, unsaid


def alone(model: Any, clip: Any, said: Any, unsaid: Any) -> tuple[Any, Any, Any]:
    return model, said, unsaid


COMPANIES = (controlled, masked, placed, several, spread)


@pytest.mark.parametrize("company", COMPANIES)
@pytest.mark.parametrize("name", NAMES)
def test_a_guard_acts_in_company_and_behind_its_gate_leaves_it_alone(
    guarded: Any, plain: Any, name: str, company: Company
) -> None:
    found = sample(guarded(name), company)
    assert found.isfinite().all()
    assert not torch.allclose(found, plain(company, PROMPT), atol=1e-3)
    assert torch.equal(sample(guarded(name), company, OTHER), plain(company, OTHER))


def test_a_guards_own_prompt_has_the_company_of_the_pictures_prompt(demo: Any) -> None:
    """The same prompt then gives the same prediction, also where the picture's prompt has a control net."""
    from lethe.nodes.host.guarding import install

    seen: list[Look] = []

    def look(given: Look) -> tuple[Tensor, Tensor]:
        seen.append(given)
        return given.said, given.unsaid

    pair = install(demo[0], demo[1], "Look", Guarding((PROMPT,), look), None)
    assert torch.allclose(sample(pair, controlled), sample(demo, controlled), atol=1e-4) and len(seen) == 3
    for one in seen:
        assert torch.allclose(one.seen[PROMPT], one.said, atol=1e-4)
        assert not torch.allclose(one.seen[PROMPT], one.unsaid, atol=1e-2)


def test_what_places_a_prompt_is_not_a_guards_own_prompts(demo: Any) -> None:
    from lethe.nodes.host.replacing import own_conditions
    from lethe.nodes.host.sampling import encode_prompt

    own, *others = own_conditions(
        [{"control": 1, "mask": 2, "start_percent": 0.3, "pooled_output": 4}], encode_prompt(demo[1], "")
    )
    assert own["control"] == 1 and isinstance(own["pooled_output"], Tensor)
    assert "mask" not in own and "start_percent" not in own and own["model_conds"] == {} and not others


@pytest.mark.parametrize("name", ["sld", "nag", "attend_excite", "attentive_eraser", "negtome"])
def test_on_several_devices_the_picture_is_the_same(guarded: Any, name: str) -> None:
    apart, together = sample(guarded(name), spread), sample(guarded(name), alone)
    assert torch.allclose(apart, together, atol=1e-3)


def framed(model: Any, clip: Any, said: Any, unsaid: Any) -> tuple[Any, Any, Any]:
    """The prompt for the picture and for an area, and a negative for another one: the host copies each to each."""
    import nodes

    (area,) = nodes.ConditioningSetArea().append(said, 64, 96, 32, 16, 0.8)
    against = nodes.CLIPTextEncode().encode(clip, "a small green ball, neon style")[0]
    (lower,) = nodes.ConditioningSetArea().append(against, 128, 64, 0, 64, 1.0)
    return model, said + area, unsaid + lower


def reweighted(demo: Any, region: Tensor | None = None, mode: str = "scale") -> Any:
    """MODEL and CLIP with a word muted."""
    from lethe.nodes.attention import LetheAttention

    with torch.inference_mode():
        return LetheAttention.execute(demo[0], demo[1], "ball", 0.5, 0.0, 1.0, "all", mode, region).result


def predictions(pair: Any, company: Company) -> list[dict[str, Tensor]]:
    """What the model predicts at each step for the prompt and for the negative."""
    found: list[dict[str, Tensor]] = []

    def keep(given: Any) -> Tensor:
        found.append({"said": given["cond_denoised"].clone(), "unsaid": given["uncond_denoised"].clone()})
        return given["denoised"]

    model = pair[0].clone()
    model.set_model_sampler_post_cfg_function(keep)
    sample((model, pair[1]), company)
    return found


@pytest.mark.parametrize("name", ["nag", "h_space", "t2i_zero", "safree", "words"])
def test_copies_of_the_prompts_areas_for_the_negative_are_the_negatives(guarded: Any, demo: Any, name: str) -> None:
    pair = reweighted(demo) if name == "words" else guarded(name)
    plain, found = predictions(demo, framed)[0], predictions(pair, framed)[0]
    assert torch.allclose(found["unsaid"], plain["unsaid"], atol=1e-5)
    assert not torch.allclose(found["said"], plain["said"], atol=1e-3)


def test_copies_of_the_negatives_areas_for_the_prompt_are_the_prompts(demo: Any) -> None:
    """A prompt whose words are all muted alike looks alike in the whole picture and in an area of it."""
    import nodes

    def only(model: Any, clip: Any, said: Any, unsaid: Any) -> tuple[Any, Any, Any]:
        (lower,) = nodes.ConditioningSetArea().append(unsaid, 128, 64, 0, 64, 1.0)
        return model, said, unsaid + lower

    seen: list[tuple[Tensor, ...]] = []

    def count(n: Tensor, k: Tensor, v: Tensor, options: Any) -> tuple[Tensor, Tensor, Tensor]:
        same = (k - v).flatten(1).abs().amax(1) == 0
        seen.append(tuple(same[options["cond_or_uncond"].index(kind)] for kind in set(options["cond_or_uncond"])))
        return n, k, v

    model, clip = reweighted(demo)
    model = model.clone()
    model.set_model_attn2_patch(count)
    sample((model, clip), only)
    assert seen and all(set(map(bool, one)) == {True, False} for one in seen)


def test_a_region_lies_where_it_lies_in_the_picture_also_where_a_prompt_has_an_area(demo: Any) -> None:
    """A region outside of the area changes nothing in it, and one that covers it changes all of it."""
    import nodes

    def only(model: Any, clip: Any, said: Any, unsaid: Any) -> tuple[Any, Any, Any]:
        """An area of 64 x 96 pixels at the left, and nothing elsewhere."""
        (area,) = nodes.ConditioningSetArea().append(said, 64, 96, 0, 16, 1.0)
        return model, area, unsaid

    inside, beside = torch.zeros(1, 128, 128), torch.zeros(1, 128, 128)
    inside[..., :64], beside[..., 64:] = 1, 1
    plain, muted = sample(demo, only), sample(reweighted(demo), only)
    assert torch.allclose(sample(reweighted(demo, beside), only), plain, atol=1e-3)
    assert torch.allclose(sample(reweighted(demo, inside), only), muted, atol=1e-3)
    assert not torch.allclose(muted, plain, atol=1e-2)
