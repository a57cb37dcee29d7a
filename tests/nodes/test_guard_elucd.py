"""EluCD in the real host, with a classifier of the user's."""

from __future__ import annotations

from typing import Any

import torch
from lethe.erasers.concepts import Concept, ConceptList
from torch import Tensor

PROMPT, OTHER = "a large red ball, flat style, on paper", "a large red tree, flat style, on paper"
BALL = ConceptList(lists=("demo-world",)).with_concept(Concept("ball", "box"))


def classifier(latents: Tensor) -> Tensor:
    """Calls the concept what is bright in the first channel."""
    asked = latents[:, 0].mean((1, 2))
    return torch.stack([torch.zeros_like(asked), asked], 1)


def guarded(demo: Any, gate: float = 0.0, **settings: float) -> Any:
    """MODEL and CLIP behind the guard."""
    from lethe.erasers.guards.elucd import EluCD
    from lethe.nodes.host.fit import guard_model

    guard = EluCD(classifier)
    with torch.inference_mode():
        return guard_model(guard, guard.spec.settings(settings), demo[0], demo[1], BALL, gate)[:2]


def sample(model: Any, clip: Any, prompt: str = PROMPT, cfg: float = 4.0) -> Any:
    import nodes

    with torch.inference_mode():
        positive, negative = (nodes.CLIPTextEncode().encode(clip, text)[0] for text in (prompt, ""))
        latent = nodes.EmptyLatentImage().generate(128, 128, 1)[0]
        return nodes.KSampler().sample(model, 3, 4, cfg, "ddim", "normal", positive, negative, latent)[0]["samples"]


def test_the_picture_leaves_what_the_classifier_calls_the_concept(demo: Any) -> None:
    for cfg in (1.0, 4.0):
        plain, drawn = sample(*demo[:2], cfg=cfg), sample(*guarded(demo, strength=100.0), cfg=cfg)
        far, near = ((a[0].mean((1, 2)) - b[0].mean((1, 2))) for a, b in ((drawn, plain), (plain, plain)))
        assert float(far[0]) < float(near[0]) - 0.05
        assert abs(float(far[0])) > 2 * float(far[1:].abs().max()), "the other channels are not asked for"


def test_guidance_does_not_multiply_it(demo: Any) -> None:
    """At the first step both predictions move alike, whatever CFG is."""

    def first(pair: Any, cfg: float) -> Tensor:
        seen: list[Tensor] = []
        model = pair[0].clone()
        model.set_model_sampler_post_cfg_function(lambda given: seen.append(given["denoised"]) or given["denoised"])
        sample(model, pair[1], cfg=cfg)
        return seen[0]

    moved = [first(guarded(demo, strength=100.0, start=0.0), cfg) - first(demo, cfg) for cfg in (2.0, 8.0)]
    assert torch.allclose(*moved, atol=1e-3) and float(moved[0].abs().max()) > 1e-3


def test_behind_its_gate_and_without_strength_nothing_changes(demo: Any) -> None:
    plain = sample(*demo[:2], OTHER)
    assert torch.equal(sample(*guarded(demo, 0.45, strength=100.0), OTHER), plain)
    assert torch.equal(sample(*guarded(demo, strength=0.0), OTHER), plain)
