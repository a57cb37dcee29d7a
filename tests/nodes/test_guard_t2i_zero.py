"""T2I-Zero's suppression in the real host: where it is exact, whose rows it changes, and what it goes with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lethe.erasers import rivals
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.errors import GuardError
from torch import Tensor

PROMPT, OTHER = "a large red ball, flat style, on paper", "a large red tree, flat style, on paper"
LONG = ", ".join([OTHER] * 12)
"""More tokens than one chunk has, so that the host repeats shorter prompts beside it."""


def guarded(demo: Any, guard: str = "t2i_zero", gate: float = 0.0, name: str = "ball", **settings: Any) -> Any:
    """MODEL and CLIP behind a guard, T2I-Zero without its correction."""
    from lethe.nodes.guard import LetheGuard

    concepts = ConceptList(lists=("demo-world",)).with_concept(Concept(name))
    chosen = {"guard": guard, **({"alpha": 0.0} if guard == "t2i_zero" else {}), **settings}
    with torch.inference_mode():
        return LetheGuard.execute(demo[0], demo[1], concepts, gate, guard=chosen).result[:2]


def muted(demo: Any, words: str) -> Any:
    """MODEL and CLIP with words turned down."""
    from lethe.nodes.attention import LetheAttention

    settings: dict[str, Any] = {"end_weight": 1.0, "start": 0.0, "end": 1.0, "blocks": "all", "mode": "scale"}
    with torch.inference_mode():
        return LetheAttention.execute(demo[0], demo[1], words, **settings).result


def sample(model: Any, clip: Any, prompts: tuple[str, ...] = (PROMPT,), cfg: float = 4.0) -> Any:
    from lethe.nodes.host.sampling import encode_prompt, prompts_at_once

    import nodes

    with torch.inference_mode():
        positive, negative = prompts_at_once([encode_prompt(clip, p) for p in prompts]), encode_prompt(clip, "")
        latent = nodes.EmptyLatentImage().generate(128, 128, len(prompts))[0]
        return nodes.KSampler().sample(model, 3, 4, cfg, "ddim", "normal", positive, negative, latent)[0]["samples"]


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The concept's words lose all places."""

    def all_of_them(maps: Tensor, named: Tensor) -> Tensor:
        return named[:, None, None].expand_as(maps)

    monkeypatch.setattr(rivals, "beaten", all_of_them)


@pytest.mark.parametrize("prompts", [(PROMPT,), (OTHER, PROMPT), (PROMPT, LONG)])
def test_a_word_that_loses_everywhere_is_a_muted_word(demo: Any, everywhere: None, prompts: tuple[str, ...]) -> None:
    for share, weight in ((1.0, 0), (0.4, 0.6)):
        found = sample(*guarded(demo, suppression=share), prompts)
        assert torch.allclose(found, sample(*muted(demo, f"ball: {weight}"), prompts), atol=1e-3)
        assert not torch.allclose(found, sample(*demo[:2], prompts), atol=1e-2)


def test_it_acts_and_leaves_the_model_as_it_was(demo: Any) -> None:
    before = {name: value.clone() for name, value in demo[0].model_state_dict().items()}
    plain, found = sample(*demo[:2]), sample(*guarded(demo, suppression=1.0))
    assert not torch.allclose(found, plain, atol=1e-2)
    assert not torch.allclose(found, sample(*muted(demo, "ball: 0")), atol=1e-2)
    assert not torch.allclose(sample(*guarded(demo, suppression=1.0), cfg=1.0), sample(*demo[:2], cfg=1.0), atol=1e-2)
    assert torch.equal(sample(*demo[:2]), plain)
    assert all(torch.equal(value, before[name]) for name, value in demo[0].model_state_dict().items())


def test_what_it_does_not_act_on_is_bit_equal(demo: Any) -> None:
    from lethe.nodes.host.guarding import installed_guards

    plain, other = sample(*demo[:2]), sample(*demo[:2], (OTHER,))
    off = guarded(demo)
    assert installed_guards(off[0])[0].plan.rivals is None
    assert torch.equal(sample(*off), plain)
    gated = guarded(demo, gate=0.45, suppression=1.0)
    assert torch.equal(sample(*gated, (OTHER,)), other) and not torch.equal(sample(*gated), plain)
    assert torch.equal(sample(*guarded(demo, suppression=1.0), (OTHER,)), other)
    assert torch.equal(sample(*guarded(demo, gate=1.9, suppression=1.0)), plain)
    assert torch.equal(sample(*guarded(demo, suppression=1.0, start=0.98, end=0.99)), plain)


def test_in_a_batch_only_the_rows_that_name_it_change(demo: Any) -> None:
    plain, found = sample(*demo[:2], (OTHER, PROMPT)), sample(*guarded(demo, suppression=1.0), (OTHER, PROMPT))
    assert torch.equal(plain[0], found[0])
    assert torch.allclose(found[1:], sample(*guarded(demo, suppression=1.0), (PROMPT, PROMPT))[1:], atol=1e-3)
    assert not torch.allclose(plain[1], found[1], atol=1e-2)


def test_it_goes_with_its_correction_and_with_other_guards(demo: Any) -> None:
    one = guarded(demo, alpha=1.0, suppression=1.0)
    assert not torch.allclose(sample(*one), sample(*guarded(demo, alpha=1.0)), atol=1e-2)
    pair = sample(*guarded(guarded(demo, suppression=1.0), "nag"))
    assert torch.allclose(pair, sample(*guarded(guarded(demo, "nag"), suppression=1.0)), atol=1e-3)
    assert not torch.allclose(pair, sample(*guarded(demo, "nag")), atol=1e-2)
    moved = sample(*guarded(guarded(demo, suppression=1.0), "attend_excite", alpha=100.0))
    assert not torch.allclose(moved, sample(*guarded(demo, "attend_excite", alpha=100.0)), atol=1e-2)


def test_attention_to_other_features_than_the_prompts_is_left_alone(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, lost = list[int](), rivals.Rivals.lost
    monkeypatch.setattr(rivals.Rivals, "lost", lambda *given: calls.append(1) or lost(*given))
    counts = []
    for model, clip in (guarded(demo, suppression=1.0), guarded(guarded(demo, suppression=1.0), "nag")):
        sample(model, clip, cfg=1.0)
        counts.append(len(calls))
        calls.clear()
    assert counts[0] == counts[1] > 0


def test_a_node_that_replaces_cross_attention_is_refused(demo: Any) -> None:
    model, clip = guarded(demo, suppression=1.0)
    taken = model.clone()
    taken.set_model_attn2_replace(lambda q, k, v, extra: q, "middle", 0)
    with pytest.raises(GuardError, match="replaces"):
        sample(taken, clip)


def test_graphs_that_were_saved_before_it_lack_it(demo: Any) -> None:
    """The host then passes None, and asks for no input that is optional."""
    from lethe.nodes.guard import LetheGuard

    (chosen,) = (own for own in LetheGuard.define_schema().inputs if own.id == "guard")
    lacking = {option.key: [own.id for own in option.inputs if own.optional] for option in chosen.options}
    assert lacking["t2i_zero"] == ["suppression"] and lacking["steerers"] == ["file"] and not lacking["sld"]
    assert torch.equal(sample(*guarded(demo, suppression=None)), sample(*guarded(demo)))
