"""Every method through the node, on the real host: what it writes, what it says, and how erasures follow each other."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.errors import FamilyError, SettingError
from lethe.erasers.measure.drift import residuals
from lethe.erasers.registry import families, methods
from lethe.erasers.result import ContextOperator, WeightEdit

BALL = ConceptList(preserve=("tree", "a green box", "box")).with_concept(Concept("ball", "box"))
FEWER = {
    "concept_prune": {"steps": 4, "tau": 2, "pictures": 1, "rho": 0.3, "spare": 1},
    "leace": {"samples": 60},
    "slug": {"pictures": 4, "held": 4, "probes": 4, "steps": 4, "cfg": 4.0, "evaluations": 4},
    "uce_debias": {"pictures": 5, "rounds": 2, "steps": 4, "step_size": 1.0},
}
"""Settings that keep methods that draw pictures short."""


def _erase(demo, method: str = "uce", concepts=BALL, form="hook", pooled=False, model=None, **given):  # type: ignore[no-untyped-def]
    from lethe.nodes.erase import LetheErase

    with torch.inference_mode():
        return LetheErase.execute(
            model or demo[0], demo[1], concepts, 1.0, form, pooled, demo[2], demo[3], {"method": method, **given}
        ).result


def _sample(model, clip, prompt: str = "a red ball, flat style, on paper"):  # type: ignore[no-untyped-def]
    import nodes

    with torch.inference_mode():
        positive = nodes.CLIPTextEncode().encode(clip, prompt)[0]
        negative = nodes.CLIPTextEncode().encode(clip, "")[0]
        latent = nodes.EmptyLatentImage().generate(128, 128, 1)[0]
        return nodes.KSampler().sample(model, 3, 4, 4.0, "ddim", "normal", positive, negative, latent)[0]["samples"]


def _whole(edit: ContextOperator | WeightEdit) -> torch.Tensor:
    """The edit as one matrix."""
    return edit.dense if edit.dense is not None else edit.up @ edit.down


def _state(model, clip):  # type: ignore[no-untyped-def]
    return {**model.model.state_dict(), **clip.patcher.model_state_dict()}


@pytest.mark.parametrize("name", sorted(methods()))
def test_every_method_erases_in_the_graph_and_leaves_what_came_in(demo, name: str) -> None:  # type: ignore[no-untyped-def]
    before = {key: value.clone() for key, value in _state(demo[0], demo[1]).items()}
    untouched = _sample(demo[0], demo[1])
    concepts = ConceptList().with_preserved(BALL.preserve).with_concept(Concept("ball", "flat style, neon style"))
    concepts = concepts if name == "uce_debias" else BALL
    model, clip, eraser, summary = _erase(demo, name, concepts, **FEWER.get(name, {}))
    drawn = _sample(model, clip)
    assert torch.isfinite(drawn).all()
    assert float((drawn - untouched).norm() / untouched.norm()) > 1e-3
    assert eraser.recipe.method == name
    assert summary.startswith(f"{name}: 1 concepts")
    assert torch.equal(_sample(demo[0], demo[1]), untouched)
    after = _state(demo[0], demo[1])
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_the_host_and_diffusers_fit_the_same_eraser(demo) -> None:  # type: ignore[no-untyped-def]
    from lethe.erasers.demo.gallery import Gallery

    gallery = Gallery()
    for name in ("uce", "rece", "speed", "emcid"):
        ours = _erase(demo, name)[2]
        method = methods()[name]
        theirs = method.fit(gallery.task(BALL), method.spec.settings({}))
        for part in ("context", "adapters", "text_encoder"):
            one, other = getattr(ours, part), getattr(theirs, part)
            assert one.keys() == other.keys()
            for key in one:
                mine, other_one = (_whole(entry) for entry in (one[key], other[key]))
                assert float((mine - other_one).norm() / mine.norm()) < 0.02, (name, key)


def test_a_method_that_edits_the_text_encoder_hands_out_another_clip(demo) -> None:  # type: ignore[no-untyped-def]
    _, clip, eraser, _ = _erase(demo, "emcid")
    assert clip is not demo[1]
    assert all(name.startswith("clip_l.text_model.encoder.layers.") for name in eraser.text_encoder)
    with torch.inference_mode():
        one, other = (c.encode_from_tokens(c.tokenize("a ball")) for c in (demo[1], clip))
    assert not torch.equal(one, other)
    assert _erase(demo, "uce")[1] is demo[1]


def test_a_later_erasure_holds_an_earlier_one_and_says_so(demo) -> None:  # type: ignore[no-untyped-def]
    first, _, _, alone = _erase(demo)
    fish = ConceptList(preserve=("tree",)).with_concept(Concept("fish", "heart"))
    second, _, eraser, summary = _erase(demo, concepts=fish, model=first)
    assert "Erased before" not in alone
    assert "Erased before" in summary
    assert "'ball'" in summary

    from lethe.nodes.host.patcher import applied_erasers

    carried = applied_erasers(second)
    assert [entry.eraser.recipe.concepts[0]["text"] for entry in carried] == ["fish", "ball"]
    operators = [entry.eraser.context["clip_l"] for entry in carried]
    free = _erase(demo, concepts=fish)[2].context["clip_l"]
    with torch.inference_mode():
        ball, box = (demo[1].encode_from_tokens(demo[1].tokenize(word))[0, 5:6] for word in ("ball", "box"))
        was, now, unheld = (residuals(ops, ball, box) for ops in (operators[1:], operators, [free, operators[1]]))
    assert float(now) < float(was) + 0.05
    assert float(unheld) > float(now)
    assert eraser.recipe.preserve == ("tree",)


def test_the_summary_names_pairs_that_nearly_coincide(demo) -> None:  # type: ignore[no-untyped-def]
    near = ConceptList(preserve=("trout", "tree")).with_concept(Concept("fish", "heart"))
    summary = _erase(demo, concepts=near)[3]
    assert "'fish' and 'trout'" in summary
    assert "'tree'" not in summary.split("(to erase, to preserve)")[1]
    assert "half of them moved by" in summary
    assert "hardly tells" not in _erase(demo)[3]


def test_pooled_features_are_refused_where_there_are_none(demo) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(FamilyError, match="pooled"):
        _erase(demo, pooled=True)


def test_a_biased_operator_is_refused_as_weights(demo) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SettingError, match="bias"):
        _erase(demo, "leace", form="weights", samples=60)


def test_methods_that_look_at_pictures_say_what_they_need(demo) -> None:  # type: ignore[no-untyped-def]
    from lethe.nodes.erase import LetheErase

    for name in ("slug", "uce_debias"):
        concepts = ConceptList(preserve=("tree", "box")).with_concept(Concept("ball", "flat style, neon style"))
        with pytest.raises(FamilyError), torch.inference_mode():
            LetheErase.execute(demo[0], demo[1], concepts, 1.0, "hook", False, method={"method": name})


def test_gradients_reach_through_the_hosts_text_encoder_and_denoiser(demo) -> None:  # type: ignore[no-untyped-def]
    settings = {"value": "optimised", "steps": 2, "sample_steps": 2}
    plain, optimised = _erase(demo, "emcid")[2], _erase(demo, "emcid", **settings)[2]
    key = max(plain.text_encoder)
    assert not torch.equal(_whole(plain.text_encoder[key]), _whole(optimised.text_encoder[key]))


def test_pooled_features_pass_their_own_operator() -> None:
    from lethe.nodes.host.patcher import _edit_features

    family = families()["sdxl"]
    tokens = ContextOperator(dense=torch.diag(torch.full((4,), 1.0)))
    pooled = ContextOperator(down=torch.eye(3)[:1], up=torch.eye(3)[:, :1])
    seen = {}

    def executor(x, t, c_concat, c_crossattn, *args, **kwargs):  # type: ignore[no-untyped-def]
        seen.update(context=c_crossattn, **kwargs)
        return x

    y, context, x = torch.ones(2, 5), torch.ones(2, 7, 4), torch.zeros(1)
    operators = {family.stream: [tokens], family.pooled_stream: [pooled]}
    _edit_features(family, operators)(executor, x, x, None, context, y=y, other=3)
    assert torch.equal(seen["context"], 2 * context)
    assert seen["y"].tolist() == [[2.0, 1.0, 1.0, 1.0, 1.0]] * 2
    assert seen["other"] == 3
    assert torch.equal(y, torch.ones(2, 5))
