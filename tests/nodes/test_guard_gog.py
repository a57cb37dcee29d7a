"""Guardians of Generation in the real host: the rewritten prompt's own picture, and the original beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.guards import gog

BALL = ConceptList(lists=("demo-world",)).with_concept(Concept("ball", "box"))
PROMPT, WANTED, OTHER = (f"a large red {word}, flat style, on paper" for word in ("ball", "box", "tree"))


def guarded(demo: Any, settings: dict[str, Any] | None = None) -> Any:
    from lethe.nodes.guard import LetheGuard

    with torch.inference_mode():
        return LetheGuard.execute(demo[0], demo[1], BALL, 0.0, guard={"guard": "gog", **(settings or {})}).result


def sample(model: Any, clip: Any, *prompts: str, steps: int = 5) -> Any:
    from lethe.nodes.host.sampling import prompts_at_once

    import nodes

    with torch.inference_mode():
        positive = prompts_at_once([nodes.CLIPTextEncode().encode(clip, prompt)[0] for prompt in prompts])
        negative = nodes.CLIPTextEncode().encode(clip, "")[0]
        latent = nodes.EmptyLatentImage().generate(128, 128, len(prompts))[0]
        return nodes.KSampler().sample(model, 3, steps, 4.0, "ddim", "normal", positive, negative, latent)[0]["samples"]


def counted(model: Any, sizes: list[int]) -> Any:
    clone = model.clone()

    def count(apply: Any, given: Any) -> Any:
        sizes.append(len(given["input"]))
        return apply(given["input"], given["timestep"], **given["c"])

    clone.set_model_unet_function_wrapper(count)
    return clone


def test_it_draws_the_rewritten_prompts_picture_and_leaves_others(demo: Any) -> None:
    model, clip, _ = guarded(demo)
    assert torch.allclose(sample(model, clip, PROMPT), sample(*demo[:2], WANTED), atol=1e-5)
    assert torch.equal(sample(model, clip, OTHER), sample(*demo[:2], OTHER))
    both = sample(model, clip, PROMPT, OTHER)
    assert torch.allclose(both, sample(*demo[:2], WANTED, OTHER), atol=1e-4)


def test_longer_prompts_are_rewritten_chunk_by_chunk(demo: Any) -> None:
    model, clip, _ = guarded(demo)
    long = ", ".join(["a red tree on paper at night"] * 12)
    found = sample(model, clip, f"{long}, a ball", steps=2)
    assert torch.allclose(found, sample(*demo[:2], f"{long}, a box", steps=2), atol=1e-5)


def test_the_original_costs_one_prediction_where_it_returns_and_none_for_others(demo: Any) -> None:
    sizes: list[int] = []
    model, clip, _ = guarded(demo, {"rho": 0.5, "start": 0.5})
    drawn = sample(counted(model, sizes), clip, PROMPT, steps=6)
    assert sizes == [2, 2, 2, 3, 3, 3]
    assert not torch.allclose(drawn, sample(*guarded(demo)[:2], PROMPT, steps=6), atol=1e-3)
    sizes.clear()
    assert torch.equal(sample(counted(model, sizes), clip, OTHER), sample(*demo[:2], OTHER))
    assert set(sizes) == {2}


def test_what_returns_is_the_original_prompts_own_prediction(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gog.Returning, "__call__", lambda self, look: (look.original, look.unsaid))
    model, clip, _ = guarded(demo, {"rho": 0.5, "start": 0.0})
    assert torch.allclose(sample(model, clip, PROMPT), sample(*demo[:2], PROMPT), atol=1e-4)
