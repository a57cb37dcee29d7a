"""Guards beside the host's own guidance by a degraded branch, PAG: both act, and neither is in the other's way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList

PROMPT, OTHER = "a large red ball, flat style, on paper", "a large red tree, flat style, on paper"
BALL = ConceptList(lists=("demo-world",)).with_concept(Concept("ball", "box"))
GUARDS: dict[str, dict[str, Any]] = {
    "sld": {"strength": "max"},
    "safree": {"adaptive": False, "reattention": True},
    "nag": {},
    "attend_excite": {"alpha": 100.0},
}


def guarded(pair: Any, name: str, gate: float = 0.0) -> Any:
    """MODEL and CLIP behind a guard."""
    from lethe.nodes.guard import LetheGuard

    with torch.inference_mode():
        return LetheGuard.execute(pair[0], pair[1], BALL, gate, guard={"guard": name, **GUARDS[name]}).result[:2]


def perturbed(pair: Any, scale: float = 3.0) -> Any:
    """MODEL and CLIP behind PAG."""
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    return PerturbedAttentionGuidance.execute(pair[0], scale).result[0], pair[1]


def sample(pair: Any, prompt: str = PROMPT, steps: int = 3) -> Any:
    import nodes

    with torch.inference_mode():
        positive, negative = (nodes.CLIPTextEncode().encode(pair[1], text)[0] for text in (prompt, ""))
        latent = nodes.EmptyLatentImage().generate(128, 128, 1)[0]
        found = nodes.KSampler().sample(pair[0], 3, steps, 4.0, "ddim", "normal", positive, negative, latent)
        return found[0]["samples"]


@pytest.mark.parametrize("name", GUARDS)
def test_pag_and_a_guard_act_together_in_either_order(demo: Any, name: str) -> None:
    both, turned = sample(perturbed(guarded(demo, name))), sample(guarded(perturbed(demo), name))
    assert torch.allclose(both, turned, atol=1e-4)
    assert not torch.allclose(both, sample(guarded(demo, name)), atol=1e-2)
    assert not torch.allclose(both, sample(perturbed(demo)), atol=1e-2)
    assert torch.equal(sample(perturbed(guarded(demo, name), 0.0)), sample(guarded(demo, name)))


def test_behind_its_gate_a_guard_leaves_pag_alone(demo: Any) -> None:
    assert torch.equal(sample(perturbed(guarded(demo, "safree", 0.45)), OTHER), sample(perturbed(demo), OTHER))


def test_pags_own_look_is_at_the_guarded_prompt(demo: Any) -> None:
    """Its branch differs from the guarded prediction by the perturbed attention alone: without that it is the same."""
    seen: list[torch.Tensor] = []

    def compare(given: Any) -> torch.Tensor:
        import comfy.samplers

        look = comfy.samplers.calc_cond_batch
        (own,) = look(given["model"], [given["cond"]], given["input"], given["sigma"], given["model_options"])
        seen.append((own - given["cond_denoised"]).abs().max())
        return given["denoised"]

    for name in ("safree", "nag", "attend_excite"):
        model, clip = guarded(demo, name)
        model = model.clone()
        model.set_model_sampler_post_cfg_function(compare)
        sample((model, clip))
    assert len(seen) == 9 and float(torch.stack(seen).max()) < 1e-3
