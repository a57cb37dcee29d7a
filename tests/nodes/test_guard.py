"""Guards in the real host: what acts, what stays bit for bit, what composes, and what is refused."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.errors import GuardError, SettingError
from lethe.erasers.registry import guards
from lethe.erasers.sites import A_PICTURE

BALL = ConceptList(lists=("demo-world",)).with_concept(Concept("ball", "box"))
PROMPT, OTHER = "a large red ball, flat style, on paper", "a large red tree, flat style, on paper"
GATE = 0.45
FEWER: dict[str, dict[str, Any]] = {
    "elucd": {"steps": 3, "pictures": 1},
    "h_space": {"steps": 3, "pictures": 2},
    "negtome": {"threshold": 0.5},
    "scaling": {"rounds": 1},
}
"""Settings that keep a training to seconds, and that let a guard act on a few steps."""


def guarded(demo: Any, name: str, gate: float = 0.0, settings: dict[str, Any] | None = None) -> Any:
    """MODEL, CLIP and summary behind a guard."""
    from lethe.nodes.guard import LetheGuard

    chosen = {"guard": name, **FEWER.get(name, {}), **(settings or {})}
    pictured = A_PICTURE in guards()[name].spec.wants
    given = {"images": torch.full((1, 128, 128, 3), 0.5), "vae": demo_vae()} if pictured else {}
    mask = torch.nn.functional.pad(torch.ones(1, 64, 64), (32, 32, 32, 32))
    with torch.inference_mode():
        return LetheGuard.execute(demo[0], demo[1], BALL, gate, guard=chosen, mask=mask, **given).result


def demo_vae() -> Any:
    from lethe.nodes.demo import LetheDemoModel

    return LetheDemoModel.execute().result[2]


def sample(
    model: Any, clip: Any, prompt: str = PROMPT, cfg: float = 4.0, steps: int = 6, size: int = 128, against: str = ""
) -> Any:
    import nodes

    with torch.inference_mode():
        positive, negative = (nodes.CLIPTextEncode().encode(clip, text)[0] for text in (prompt, against))
        latent = nodes.EmptyLatentImage().generate(size, size, 1)[0]
        return nodes.KSampler().sample(model, 3, steps, cfg, "ddim", "normal", positive, negative, latent)[0]["samples"]


@pytest.fixture(scope="module")
def plain(demo: Any) -> Any:
    """What the untouched model draws, by prompt."""
    return {prompt: sample(*demo[:2], prompt) for prompt in (PROMPT, OTHER)}


@pytest.mark.parametrize("name", guards())
def test_a_guard_acts_and_leaves_the_model_alone(demo: Any, plain: Any, name: str) -> None:
    before = {key: value.clone() for key, value in demo[0].model.state_dict().items()}
    model, clip, summary = guarded(demo, name)
    assert not torch.allclose(sample(model, clip), plain[PROMPT], atol=1e-3)
    assert torch.equal(sample(*demo[:2]), plain[PROMPT])
    after = demo[0].model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert guards()[name].needs in summary


@pytest.mark.parametrize("name", guards())
def test_behind_its_gate_other_prompts_are_drawn_bit_for_bit(demo: Any, plain: Any, name: str) -> None:
    model, clip, _ = guarded(demo, name, GATE)
    assert torch.equal(sample(model, clip, OTHER), plain[OTHER])
    assert not torch.allclose(sample(model, clip), plain[PROMPT], atol=1e-3)


def test_the_gate_tells_prompts_for_the_concept_from_others(demo: Any) -> None:
    from lethe.erasers.demo.sets import demo_rows

    import nodes

    (installed,) = guarded(demo, "sld", GATE)[0].get_attachment("lethe.guards")
    opened: dict[str, list[bool]] = {}
    with torch.inference_mode():
        for row in demo_rows(BALL.erase[0], 15):
            states = nodes.CLIPTextEncode().encode(demo[1], row.text)[0][0][0]
            opened.setdefault(row.kind, []).append(bool(installed.opens(states)))
    assert all(opened["direct"]) and all(opened["compositional"]) and sum(opened["synonym"]) > 12
    assert not any(opened["near"]) and not any(opened["far"])
    assert not any(opened["implicit"]), "words that only the denoiser knows pass a gate on text features"


def reweighted(demo: Any, words: str, **given: Any) -> Any:
    """MODEL and CLIP with words reweighted."""
    from lethe.nodes.attention import LetheAttention

    settings: dict[str, Any] = {"end_weight": 1.0, "start": 0.0, "end": 1.0, "blocks": "all", "mode": "scale"} | given
    with torch.inference_mode():
        return LetheAttention.execute(demo[0], demo[1], words, **settings).result


@pytest.mark.parametrize("mode", ["scale", "renormalise"])
def test_words_that_weigh_one_or_are_not_there_change_nothing(demo: Any, plain: Any, mode: str) -> None:
    assert torch.equal(sample(*reweighted(demo, "tree: 0", mode=mode)), plain[PROMPT])
    same = sample(*reweighted(demo, "ball: 1", mode=mode))
    assert torch.allclose(same, plain[PROMPT], atol=1e-4)
    muted = sample(*reweighted(demo, "ball", mode=mode))
    assert not torch.allclose(muted, plain[PROMPT], atol=1e-2)


def test_a_renormalised_zero_is_a_prompt_without_the_token(demo: Any) -> None:
    """Attention over all tokens but the muted ones, computed by hand at every cross-attention."""
    from lethe.nodes.host.guarding import installed_guards

    model, clip = reweighted(demo, "ball", mode="renormalise")
    muted = sample(model, clip, cfg=1.0)
    plain_clip, seen = demo[1], []
    import nodes

    with torch.inference_mode():
        positive = nodes.CLIPTextEncode().encode(plain_clip, PROMPT)[0]
    place = 1 + list(installed_guards(model)[0].plan.words.tower.content(PROMPT)).index(
        installed_guards(model)[0].plan.words.tower.content("ball")[0]
    )
    positive[0][0] = torch.cat([positive[0][0][:, :place], positive[0][0][:, place + 1 :]], dim=1)
    with torch.inference_mode():
        latent = nodes.EmptyLatentImage().generate(128, 128, 1)[0]
        seen = nodes.KSampler().sample(demo[0], 3, 6, 1.0, "ddim", "normal", positive, positive, latent)[0]["samples"]
    assert torch.allclose(muted, seen, atol=1e-3)


def test_a_region_confines_a_word(demo: Any, plain: Any) -> None:
    left = torch.zeros(1, 128, 128)
    left[..., :64] = 1
    whole, nowhere = torch.ones(1, 128, 128), torch.zeros(1, 128, 128)
    assert torch.allclose(sample(*reweighted(demo, "ball", region=nowhere)), plain[PROMPT], atol=1e-4)
    muted = sample(*reweighted(demo, "ball"))
    assert torch.allclose(sample(*reweighted(demo, "ball", region=whole)), muted, atol=1e-3)
    halved = sample(*reweighted(demo, "ball", region=left))
    assert not torch.allclose(halved, muted, atol=1e-2) and not torch.allclose(halved, plain[PROMPT], atol=1e-2)


@pytest.mark.parametrize("names", [*permutations(("sld", "safree", "leace"), 2), *(("sld", name) for name in guards())])
def test_two_guards_act_together(demo: Any, names: tuple[str, str]) -> None:
    first, second = names
    behind = guarded(demo, first)
    both = guarded(behind, second)
    drawn = sample(both[0], both[1], steps=3)
    assert drawn.isfinite().all()
    assert not torch.allclose(drawn, sample(*behind[:2], steps=3), atol=1e-4)


@pytest.mark.parametrize("name", guards())
def test_at_cfg_one_a_guard_acts_or_says_why_not(demo: Any, name: str) -> None:
    model, clip, _ = guarded(demo, name)
    if guards()[name].needs.startswith("Needs guidance"):
        with pytest.raises(GuardError, match="CFG 1"):
            sample(model, clip, cfg=1.0)
    else:
        assert not torch.allclose(sample(model, clip, cfg=1.0), sample(*demo[:2], cfg=1.0), atol=1e-4)


def test_a_guard_that_reads_tokens_refuses_a_prompt_it_could_not_read(demo: Any) -> None:
    model, _, _ = guarded(demo, "safree")
    with pytest.raises(GuardError, match="CLIP output"):
        sample(model, demo[1])


def test_a_guard_goes_with_an_eraser_and_a_lora(demo: Any, plain: Any) -> None:
    from lethe.nodes.erase import LetheErase

    red = ConceptList(lists=("demo-world",)).with_concept(Concept("red", "blue"))
    with torch.inference_mode():
        erased = LetheErase.execute(demo[0], demo[1], red, 1.0, "hook", False, method={"method": "uce"}).result
    lora = erased[0].clone()
    key = next(k for k in lora.model_state_dict() if k.endswith("attn1.to_q.weight"))
    lora.add_patches({key: ("diff", (torch.full_like(lora.model_state_dict()[key], 1e-2),))})
    behind = guarded((lora, erased[1]), "sld", settings={"strength": "max"})
    drawn = sample(*behind[:2])
    assert not torch.allclose(drawn, sample(lora, erased[1]), atol=1e-3)
    assert not torch.allclose(drawn, sample(*guarded(demo, "sld", settings={"strength": "max"})[:2]), atol=1e-3)
    assert torch.equal(sample(*demo[:2]), plain[PROMPT])


def _batches(model: Any, clip: Any) -> list[int]:
    """The rows that the model is given at each of six steps."""
    sizes: list[int] = []
    model = model.clone()

    def count(apply: Any, given: Any) -> Any:
        sizes.append(len(given["input"]))
        return apply(given["input"], given["timestep"], **given["c"])

    model.set_model_unet_function_wrapper(count)
    sample(model, clip, steps=6)
    return sizes


def test_the_guards_prompts_share_the_batch_and_only_in_their_window(demo: Any) -> None:
    half = {"start": 0.5}
    assert _batches(*guarded(demo, "negative", settings={**half, "against": "beside"})[:2]) == [2, 2, 2, 3, 3, 3]
    assert _batches(*guarded(demo, "negative", settings=half)[:2]) == [2] * 6, "nothing reads the negative's prediction"


def test_a_negative_that_another_guard_reads_is_predicted(demo: Any) -> None:
    timed, safe = ("negative", {}), ("sld", {"warmup": 0.0})
    for order, rows in (((timed, safe), 3), ((safe, timed), 4)):
        found = demo
        for name, settings in order:
            found = guarded(found, name, settings=settings)
        assert _batches(*found[:2]) == [rows] * 6, order


def test_a_timed_negative_that_always_acts_is_a_negative_prompt(demo: Any, plain: Any) -> None:
    drawn = sample(*guarded(demo, "negative")[:2], against="a tree")
    assert torch.equal(drawn, sample(*demo[:2], against="ball"))
    assert not torch.allclose(drawn, plain[PROMPT], atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "problem"), [({"start": 0.5, "end": 0.4}, "never"), ({"against": "both"}, "against")]
)
def test_bad_settings_are_refused(demo: Any, settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(SettingError, match=problem):
        guarded(demo, "negative", settings=settings)


@pytest.mark.parametrize("words", ["", "ball: much", "ball: 99", ": 0.5", "ball\nball: 0.5"])
def test_words_that_cannot_be_weighed_are_refused(demo: Any, words: str) -> None:
    with pytest.raises(SettingError):
        reweighted(demo, words)


@pytest.mark.parametrize(("kind", "problem"), [("basic", "has none"), ("dual", "has 3")])
def test_guiders_that_have_no_pair_of_predictions_are_refused(demo: Any, kind: str, problem: str) -> None:
    from comfy_extras import nodes_custom_sampler as custom

    import nodes

    model, clip, _ = guarded(demo, "sld")
    with torch.inference_mode():
        said = nodes.CLIPTextEncode().encode(clip, PROMPT)[0]
        guider = custom.Guider_Basic(model) if kind == "basic" else custom.Guider_DualCFG(model)
        guider.set_conds(*([said] if kind == "basic" else [said, said, said]))
        noise = torch.zeros(1, 4, 16, 16)
        sampler, sigmas = custom.comfy.samplers.KSAMPLER(lambda *args, **kwargs: noise), torch.tensor([1.0, 0.0])
        with pytest.raises(GuardError, match=problem):
            guider.sample(noise, noise, sampler, sigmas)
