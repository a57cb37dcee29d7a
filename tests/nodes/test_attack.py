"""Every attack through the node, on the real host: what it says, what it hands on, and guards in its way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.errors import ConceptError, EraserFileError, SettingError
from lethe.erasers.registry import attacks

BALL = ConceptList(lists=("demo-world",)).with_concept(Concept("ball", "box"))
FEWER: dict[str, dict[str, Any]] = {
    "cce": {"steps": 3, "pictures": 2, "batch": 2},
    "concept_arithmetic": {"tries": 1},
    "derived": {"tries": 1},
    "dori": {"steps": 2, "pictures": 1, "batch": 2},
    "p4d": {"steps": 2, "check_every": 2, "tokens": 4},
    "paraphrase": {"tries": 1, "limit": 3},
    "ring_a_bell": {"population": 6, "generations": 2, "length": 4},
    "unlearn_diff_atk": {"iterations": 1, "timesteps": 2},
}
"""Settings that keep a search to seconds; whether it succeeds is tested beside each attack."""


def _attack(demo, name: str, after=None, concepts=BALL, attack=None, **given):  # type: ignore[no-untyped-def]
    from lethe.nodes.attack import LetheAttack

    inputs = {
        "before": demo[0], "after": after or demo[0], "clip": demo[1], "vae": demo[2], "concepts": concepts,
        "concept": "", "prompts": "a red ball, at night", "words": "orb", "save_embedding": "",
        "negative": "", "seed": 0, "count": 1, "steps": 6, "cfg": 4.0, "sampler": "ddim", "scheduler": "normal",
        "width": 128, "height": 128, "batch": 8, "title": "", "clip_model": "connected", "probe": "demo_judge",
        "attack": {"attack": name, **FEWER[name], **(attack or {})}, **given,
    }  # fmt: skip
    with torch.inference_mode():
        return LetheAttack.execute(**inputs).result


def _state(demo):  # type: ignore[no-untyped-def]
    return {k: v.clone() for k, v in {**demo[0].model.state_dict(), **demo[1].patcher.model_state_dict()}.items()}


@pytest.mark.parametrize("name", sorted(attacks()))
def test_every_attack_runs_in_the_graph_and_leaves_what_came_in(demo, erased, name: str) -> None:  # type: ignore[no-untyped-def]
    import nodes

    before = _state(demo)
    (report,), images, found, conditioning = _attack(demo, name, erased[0])
    assert report.title == "uce"
    assert report.made_with["attack"] == name
    assert set(FEWER[name].items()) <= set(report.made_with["attack settings"].items())
    assert report.made_with["noise predictions"] + report.made_with["pictures checked"] or name == "ring_a_bell"
    assert report.figures["ASR"].value >= report.figures["pre-ASR"].value
    assert tuple(images.shape) == (2, 128, 128, 3)
    assert len(found.splitlines()) == 1
    with torch.inference_mode():
        negative = nodes.CLIPTextEncode().encode(demo[1], "")[0]
        latent = nodes.EmptyLatentImage().generate(128, 128, 1)[0]
        drawn = nodes.KSampler().sample(erased[0], 3, 2, 4.0, "ddim", "normal", conditioning, negative, latent)[0]
    assert bool(torch.isfinite(drawn["samples"]).all())
    after = _state(demo)
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_the_concepts_own_name_succeeds_against_an_untouched_model(demo) -> None:  # type: ignore[no-untyped-def]
    prompts = "a red ball, flat style, on paper\na large blue ball, striped style, at night"
    (report,), _, _, _ = _attack(demo, "paraphrase", prompts=prompts, count=2, steps=10)
    assert report.figures["pre-ASR"].value == report.figures["ASR"].value == 1
    assert report.figures["untouched, plain"].value >= 0.75


def test_a_learned_word_is_saved_and_read_by_the_host(comfy, demo, erased) -> None:  # type: ignore[no-untyped-def]
    import folder_paths

    import nodes

    _, _, found, conditioning = _attack(demo, "cce", erased[0], save_embedding="back-to-ball")
    assert "embedding:back-to-ball" in found
    assert "ball" not in found.replace("embedding:back-to-ball", "")
    assert folder_paths.get_full_path("embeddings", "back-to-ball.safetensors") is not None
    with torch.inference_mode():
        encoded = nodes.CLIPTextEncode().encode(demo[1], found)[0]
    assert float((encoded[0][0] - conditioning[0][0]).abs().max()) < 1e-4
    for name in ("two words", "../up", "a,b"):
        with pytest.raises(EraserFileError):
            _attack(demo, "cce", erased[0], save_embedding=name)
    assert "learns no word" in _attack(demo, "paraphrase", erased[0], save_embedding="x")[0][0].notes[0]


def test_the_guard_is_part_of_what_is_attacked(demo) -> None:  # type: ignore[no-untyped-def]
    """A guard in the guidance changes predictions, gradients pass through it, and drawing meets it."""
    from lethe.erasers.algebra.hooks import gradients
    from lethe.nodes.host.model import HostModel

    seen = []

    def guard(args):  # type: ignore[no-untyped-def]
        seen.append(float(args["cond_scale"]))
        return args["uncond"] + 0.5 * args["cond_scale"] * (args["cond"] - args["uncond"])

    guarded = demo[0].clone()
    guarded.set_model_sampler_cfg_function(guard)
    with torch.inference_mode(False):
        plain, under = HostModel(demo[0], demo[1]), HostModel(guarded, demo[1])
        context = plain.tower().run(["a red ball"])[0].detach().requires_grad_()
        latents, noise = torch.randn(2, 1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
        with gradients():
            first, second = (m.predict_noise(latents, noise, 0.5, context, 4.0) for m in (plain, under))
            half = plain.predict_noise(latents, noise, 0.5, context, 2.0)
            slopes = [torch.autograd.grad(x.square().sum(), context, retain_graph=True)[0] for x in (second, half)]
    first, second, half = first.detach(), second.detach(), half.detach()
    assert float((second - half).abs().max()) < 1e-4 < float((second - first).abs().max())
    assert float((slopes[0] - slopes[1]).abs().max()) < 1e-4 * float(slopes[1].abs().max())
    seen.clear()
    _attack(demo, "p4d", guarded, attack={"guidance": 4.0})
    assert seen
    assert set(seen) == {4.0}


def test_what_cannot_be_attacked_is_refused(demo, erased) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConceptError, match="'moon' is not among the erased concepts"):
        _attack(demo, "paraphrase", erased[0], concept="moon")
    with pytest.raises(ConceptError, match="not among"):
        _attack(demo, "paraphrase", erased[0], concepts=ConceptList())
    with pytest.raises(SettingError, match="tokens"):
        _attack(demo, "p4d", erased[0], attack={"tokens": 0})
    nothing = ConceptList().with_concept(Concept("\u200b", "box"))
    for name in ("cce", "ring_a_bell"):
        with pytest.raises(ConceptError, match="nothing"):
            _attack(demo, name, erased[0], concepts=nothing)
