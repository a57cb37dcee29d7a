"""Stacks on the real host: gated erasers beside the model's layers, merged ones against erasers applied in a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.errors import GuardError, SettingError
from lethe.erasers.result import Bottleneck, Eraser, WeightEdit
from lethe.erasers.store.eraser_file import load_eraser, save_eraser
from torch import Tensor

BALL, KEPT, OTHER = "a red ball, flat style, on paper", "a large green tree", "a blue fish on paper"
PAIRS = (("ball", "box"), ("fish", "heart"), ("star", "cone"))


def one(demo: Any, name: str, replacement: str, method: str = "uce") -> Eraser:
    from lethe.nodes.erase import LetheErase

    concepts = ConceptList(lists=("demo-world",)).with_concept(Concept(name, replacement))
    with torch.inference_mode():
        return LetheErase.execute(demo[0], demo[1], concepts, 1.0, "hook", False, method={"method": method}).result[2]


@pytest.fixture(scope="module")
def operators(demo: Any) -> list[Eraser]:
    return [one(demo, *pair) for pair in PAIRS]


@pytest.fixture(scope="module")
def adapters(demo: Any) -> list[Eraser]:
    return [one(demo, *pair, method="speed") for pair in PAIRS[:2]]


def stack_of(erasers: list[Eraser], strength: float = 1.0, below: Any = None) -> Any:
    from lethe.nodes.stack import LetheStack

    return LetheStack.execute(erasers, [strength], None if below is None else [below]).result[0]


def merged(demo: Any, erasers: list[Eraser], mode: str, **given: Any) -> Eraser:
    from lethe.nodes.stack import LetheMerge

    with torch.inference_mode():
        return LetheMerge.execute(stack_of(erasers), demo[0], demo[1], {"mode": mode, **given}).result[0]


def applied(demo: Any, eraser: Eraser, form: str = "hook", strength: float = 1.0, model: Any = None) -> tuple[Any, Any]:
    from lethe.nodes.erase import LetheApply

    with torch.inference_mode():
        return LetheApply.execute(model or demo[0], demo[1], eraser, strength, form).result


def encode(clip: Any, text: str) -> Any:
    import nodes

    return nodes.CLIPTextEncode().encode(clip, text)[0]


def sample(model: Any, positive: Any, negative: Any, cfg: float = 4.0, count: int = 1) -> Tensor:
    import nodes

    latent = nodes.EmptyLatentImage().generate(128, 128, count)[0]
    return nodes.KSampler().sample(model, 3, 4, cfg, "ddim", "normal", positive, negative, latent)[0]["samples"]


def draw(model: Any, clip: Any, prompt: str, negative: str = "", cfg: float = 4.0) -> Tensor:
    with torch.inference_mode():
        return sample(model, encode(clip, prompt), encode(clip, negative), cfg)


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize(
    ("gate", "threshold", "asking"),
    [("transport", 0.5, BALL), ("discriminant", 0.5, BALL), ("contribution", 0.7, "painting of ball")],
)
def test_a_shut_gate_leaves_the_picture_bit_for_bit_and_an_open_one_erases(  # type: ignore[no-untyped-def]
    demo, operators, gate: str, threshold: float, asking: str
) -> None:
    model, clip = applied(demo, merged(demo, operators, "gated", gate=gate, threshold=threshold))
    assert torch.equal(draw(model, clip, KEPT), draw(*demo[:2], KEPT))
    assert apart(draw(model, clip, asking), draw(*demo[:2], asking)) > 0.02


@pytest.mark.parametrize("kind", ["operators", "adapters"])
def test_open_gates_do_what_the_erasers_do_ungated(demo, kind: str, request) -> None:  # type: ignore[no-untyped-def]
    own = request.getfixturevalue(kind)[:1]
    gated = applied(demo, merged(demo, own, "gated"))
    plain = applied(demo, merged(demo, own, "sum"), "hook" if kind == "operators" else "weights")
    # With the concept on both sides of the guidance the gate is fully open for every row.
    assert apart(draw(*gated, "ball", "red ball"), draw(*plain, "ball", "red ball")) < 1e-4
    assert apart(draw(*plain, "ball", "red ball"), draw(*demo[:2], "ball", "red ball")) > 0.05


def test_members_are_told_apart_and_only_the_asked_for_acts(demo, adapters) -> None:  # type: ignore[no-untyped-def]
    both = applied(demo, merged(demo, adapters, "gated"))
    for prompt, eraser in ((BALL, adapters[0]), (OTHER, adapters[1])):
        assert torch.equal(draw(*both, prompt), draw(*applied(demo, merged(demo, [eraser], "gated")), prompt))


def test_rows_of_a_batch_have_gates_of_their_own(demo, operators) -> None:  # type: ignore[no-untyped-def]
    from lethe.nodes.host.sampling import prompts_at_once

    model, clip = applied(demo, merged(demo, operators, "gated"))
    with torch.inference_mode():
        positive = prompts_at_once([encode(clip, prompt) for prompt in (BALL, KEPT)])
        both = sample(model, positive, encode(clip, ""), count=2)
        plain = sample(demo[0], positive, encode(demo[1], ""), count=2)
        alone = sample(model, prompts_at_once([encode(clip, BALL)] * 2), encode(clip, ""), count=2)
    assert torch.equal(both[1], plain[1])
    assert apart(both[0], plain[0]) > 0.02
    assert apart(both[0], alone[0]) < 1e-4


def test_several_conditions_and_no_guidance(demo, operators) -> None:  # type: ignore[no-untyped-def]
    model, clip = applied(demo, merged(demo, operators, "gated"))
    assert apart(draw(model, clip, BALL, cfg=1.0), draw(*demo[:2], BALL, cfg=1.0)) > 0.02
    assert torch.equal(draw(model, clip, KEPT, cfg=1.0), draw(*demo[:2], KEPT, cfg=1.0))
    with torch.inference_mode():
        empty = encode(clip, "")
        for second, acts in ((BALL, True), (OTHER, True), ("a moon", False)):
            conds = [*encode(clip, KEPT), *encode(clip, second)]
            found, plain = sample(model, conds, empty), sample(demo[0], conds, empty)
            assert torch.equal(found, plain) != acts


def test_strength_and_a_later_eraser_and_a_lora_of_the_user(demo, operators, adapters) -> None:  # type: ignore[no-untyped-def]
    gated = merged(demo, adapters, "gated")
    assert torch.equal(draw(*applied(demo, gated, strength=0.0), BALL), draw(*demo[:2], BALL))
    half, full = (draw(*applied(demo, gated, strength=s), BALL) for s in (0.5, 1.0))
    assert apart(half, draw(*demo[:2], BALL)) < apart(full, draw(*demo[:2], BALL))
    user = demo[0].clone()
    key = next(k for k in user.model_state_dict() if k.endswith("attn2.to_q.weight"))
    user.add_patches({key: ("diff", (0.3 * torch.randn(demo[0].model_state_dict()[key].shape),))}, 1.0)
    over, clip = applied(demo, gated, model=user)
    assert torch.equal(draw(over, clip, KEPT), draw(user, clip, KEPT))
    assert apart(draw(over, clip, BALL), draw(user, clip, BALL)) > 0.02
    # A second eraser on top, and the first one is still there.
    star, _ = applied(demo, merged(demo, operators[2:], "gated"), model=over)
    assert apart(draw(star, clip, BALL), draw(user, clip, BALL)) > 0.02
    assert apart(draw(star, clip, "a star"), draw(user, clip, "a star")) > 0.02


def test_the_model_is_as_before_and_gates_survive_unloading_and_files(demo, adapters, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    import comfy.model_management

    comfy.model_management.unload_all_models()
    before = {key: value.clone() for key, value in demo[0].model.state_dict().items()}
    gated = merged(demo, adapters, "gated", gate="discriminant")
    model, clip = applied(demo, gated)
    found = draw(model, clip, BALL)
    assert not any(module._forward_hooks for module in demo[0].model.modules())
    comfy.model_management.unload_all_models()
    assert all(torch.equal(value, demo[0].model.state_dict()[key]) for key, value in before.items())
    assert torch.equal(draw(model, clip, BALL), found)
    save_eraser(gated, tmp_path / "gated.safetensors")
    again = load_eraser(tmp_path / "gated.safetensors")
    assert apart(draw(*applied(demo, again), BALL), found) < 1e-4
    assert torch.equal(draw(*applied(demo, again), KEPT), draw(*demo[:2], KEPT))


def test_gates_that_read_tokens_want_the_clip_that_tells_them(demo, operators) -> None:  # type: ignore[no-untyped-def]
    model, clip = applied(demo, merged(demo, operators, "gated", gate="transport"))
    with pytest.raises(GuardError, match="CLIP output"):
        draw(model, demo[1], BALL)
    assert clip is not demo[1]
    model, clip = applied(demo, merged(demo, operators, "gated", gate="discriminant"))
    assert clip is demo[1]


@pytest.mark.parametrize("guard", ["gog", "steerers", "sld"])
def test_gated_erasers_and_guards_go_together_in_any_order(demo, operators, guard: str) -> None:  # type: ignore[no-untyped-def]
    from lethe.nodes.guard import LetheGuard

    gated = merged(demo, operators[:1], "gated", gate="transport")
    fish = ConceptList(lists=("demo-world",)).with_concept(Concept("fish", "heart"))
    found = []
    for first in ("eraser", "guard"):
        model, clip = demo[:2]
        for step in ("eraser", "guard") if first == "eraser" else ("guard", "eraser"):
            with torch.inference_mode():
                if step == "eraser":
                    model, clip = applied((model, clip), gated, model=model)
                else:
                    model, clip = LetheGuard.execute(model, clip, fish, 0.5, guard={"guard": guard}).result[:2]
        found.append([draw(model, clip, prompt) for prompt in (BALL, OTHER, KEPT)])
    plain = [draw(*demo[:2], prompt) for prompt in (BALL, OTHER, KEPT)]
    for drawn in found:
        assert apart(drawn[0], plain[0]) > 0.02
        assert apart(drawn[1], plain[1]) > 0.02
        assert torch.equal(drawn[2], plain[2])


def test_a_compiled_model_is_refused_where_a_gate_opens(demo, operators) -> None:  # type: ignore[no-untyped-def]
    from comfy.patcher_extension import WrappersMP

    model, clip = applied(demo, merged(demo, operators, "gated"))
    compiled = model.clone()
    compiled.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "torch.compile", lambda executor, *a, **k: executor(*a, **k))
    assert torch.equal(draw(compiled, clip, KEPT), draw(*demo[:2], KEPT))
    with pytest.raises(SettingError, match="compiled"):
        draw(compiled, clip, BALL)


def test_training_and_attacks_see_gated_erasers_through_their_features(demo, operators) -> None:  # type: ignore[no-untyped-def]
    from lethe.nodes.host.model import HostModel

    gated = merged(demo, operators, "gated", gate="discriminant")
    with torch.inference_mode(False), torch.no_grad():
        guarded, base = HostModel(*applied(demo, gated)), HostModel(*demo[:2])
        x, sigma = torch.randn(2, *base.latent_shape()), torch.full((2,), 3.0)
        context = base.tower().run([BALL, KEPT])[0]
        with guarded.ready():
            found, plain = guarded.predict(x, sigma, context), base.predict(x, sigma, context)
        assert apart(found[0], plain[0]) > 1e-3
        assert torch.equal(found[1], plain[1])
        looks = [host.predict_noise(x, torch.randn_like(x), 0.5, context) for host in (guarded, base)]
        assert apart(looks[0][0], looks[1][0]) > 1e-3


def test_gates_act_on_a_model_that_is_only_partly_loaded(demo, adapters) -> None:  # type: ignore[no-untyped-def]
    import comfy.model_management
    from lethe.nodes.host.model import HostModel

    host = HostModel(*applied(demo, merged(demo, adapters, "gated", gate="discriminant")))
    with torch.inference_mode(False), torch.no_grad():
        context = host.tower().run([BALL, KEPT])[0]
        x, sigma = torch.randn(2, *host.latent_shape()), torch.full((2,), 3.0)
        with host.ready():
            whole = host.predict(x, sigma, context)
        plain = HostModel(*demo[:2]).predict(x, sigma, context)
        comfy.model_management.unload_all_models()
        host.patcher.patch_model(torch.device("cpu"), lowvram_model_memory=64)
        streamed = [m for m in host.patcher.model.modules() if getattr(m, "comfy_cast_weights", False)]
        found = host.predict(x, sigma, context)
        host.patcher.unpatch_model(torch.device("cpu"))
    assert streamed
    assert apart(found, whole) < 1e-5
    assert apart(found[0], plain[0]) > 1e-3


def test_small_networks_and_whole_differences_behind_gates(demo) -> None:  # type: ignore[no-untyped-def]
    from lethe.nodes.host.sites import model_sites

    found = model_sites(demo[0])
    site = next(site for site in found.sites if site.role == "v")
    owner = site.name.removesuffix(".to_v.weight")
    width = found.shapes[f"{owner}.to_out.0.weight"][0]
    g = torch.Generator().manual_seed(0)
    network = Bottleneck(*(torch.randn(*shape, generator=g) for shape in ((4, width), (4,), (width, 4), (width,))))
    whole = WeightEdit(dense=torch.randn(site.fan_out, site.width, generator=g))
    base = one(demo, *PAIRS[0])
    for parts in ({"modules": {owner: network}}, {"adapters": {site.name: whole}}):
        gated = merged(demo, [Eraser(base.recipe, **parts)], "gated")
        model, clip = applied(demo, gated)
        assert torch.equal(draw(model, clip, KEPT), draw(*demo[:2], KEPT))
        assert (
            apart(
                draw(model, clip, "ball", "red ball"),
                draw(*applied(demo, Eraser(base.recipe, **parts)), "ball", "red ball"),
            )
            < 1e-4
        )


def test_a_sum_is_what_erasers_applied_in_a_row_do_as_weights(demo, adapters) -> None:  # type: ignore[no-untyped-def]
    model = demo[0]
    for eraser in adapters:
        model, _ = applied(demo, eraser, "weights", model=model)
    found = applied(demo, merged(demo, adapters, "sum"), "weights")
    assert apart(draw(*found, BALL), draw(model, demo[1], BALL)) < 1e-4


def test_learned_coefficients_stay_within_bounds_and_keep_more_than_the_sum(demo, adapters) -> None:  # type: ignore[no-untyped-def]
    found = merged(demo, adapters, "learned", steps=20, rate=0.1, keep=100.0, batch=4)
    plain = merged(demo, adapters, "sum")
    assert set(found.adapters) == set(plain.adapters)
    moved = [apart(draw(*applied(demo, eraser), KEPT), draw(*demo[:2], KEPT)) for eraser in (found, plain)]
    assert 0 < moved[0] < moved[1]
    assert found.recipe.method == "merged: learned"


def test_each_concept_by_itself_keeps_what_is_preserved() -> None:
    from lethe.erasers.errors import ConceptError
    from lethe.nodes.stack import LetheEach

    concepts = ConceptList(preserve=("tree",), lists=("demo-world",)).with_concepts(Concept(*pair) for pair in PAIRS)
    (found,) = LetheEach.execute(concepts).result
    assert [own.names for own in found] == [("ball",), ("fish",), ("star",)]
    assert all(own.preserve == ("tree",) and own.lists == ("demo-world",) for own in found)
    with pytest.raises(ConceptError):
        LetheEach.execute(ConceptList())
