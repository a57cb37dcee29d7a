"""Erase-and-check in the real host: what is drawn for a prompt that names the concept, hides it, or does neither."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.guards import erase_and_check

BALL = ConceptList(lists=("demo-world",)).with_concept(Concept("ball", "box"))
PROMPT, WANTED, OTHER = (f"a large red {word}, flat style, on paper" for word in ("ball", "box", "tree"))


def guarded(demo: Any, **settings: Any) -> Any:
    from lethe.nodes.guard import LetheGuard

    chosen = {"guard": "erase_and_check", "d": 4, **settings}
    with torch.inference_mode():
        return LetheGuard.execute(demo[0], demo[1], BALL, 0.0, guard=chosen).result


def sample(model: Any, clip: Any, prompt: str) -> Any:
    import nodes

    with torch.inference_mode():
        positive, negative = (nodes.CLIPTextEncode().encode(clip, text)[0] for text in (prompt, ""))
        latent = nodes.EmptyLatentImage().generate(128, 128, 1)[0]
        return nodes.KSampler().sample(model, 3, 3, 4.0, "ddim", "normal", positive, negative, latent)[0]["samples"]


@pytest.mark.parametrize("mode", ["suffix", "block", "subsets"])
def test_a_flagged_prompt_is_drawn_rewritten_and_another_bit_for_bit(demo: Any, mode: str) -> None:
    model, clip, _ = guarded(demo, mode=mode, budget=20)
    assert torch.allclose(sample(model, clip, PROMPT), sample(*demo[:2], WANTED), atol=1e-5)
    assert torch.equal(sample(model, clip, OTHER), sample(*demo[:2], OTHER))


def test_what_hides_the_concept_is_not_drawn(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a check that three words at the end switch off."""
    known = erase_and_check.Wordbook.asking

    def blinded(self: Any, contents: list[list[int]]) -> list[bool]:
        hiding = self.tower.content("at night")
        pairs = zip(contents, known(self, contents), strict=True)
        return [asks and own[-2:] != hiding for own, asks in pairs]

    monkeypatch.setattr(erase_and_check.Wordbook, "asking", blinded)
    hidden = f"{PROMPT} at night"
    model, clip, _ = guarded(demo, mode="suffix")
    assert torch.allclose(sample(model, clip, hidden), sample(*demo[:2], f"{WANTED} at"), atol=1e-5)
    model, clip, _ = guarded(demo, mode="suffix", instead="empty")
    assert torch.allclose(sample(model, clip, hidden), sample(*demo[:2], ""), atol=1e-5)
    model, clip, _ = guarded(demo, d=0)
    assert torch.equal(sample(model, clip, hidden), sample(*demo[:2], hidden))
