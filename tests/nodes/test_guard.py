"""Guards in the real host: what acts, what stays bit for bit, what composes, and what is refused."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.errors import GuardError, SettingError
from lethe.erasers.registry import guards

BALL = ConceptList(lists=("demo-world",)).with_concept(Concept("ball", "box"))
PROMPT, OTHER = "a large red ball, flat style, on paper", "a large red tree, flat style, on paper"
GATE = 0.45


def guarded(demo: Any, name: str, gate: float = 0.0, settings: dict[str, Any] | None = None) -> Any:
    """MODEL, CLIP and summary behind a guard."""
    from lethe.nodes.guard import LetheGuard

    with torch.inference_mode():
        return LetheGuard.execute(demo[0], demo[1], BALL, gate, guard={"guard": name, **(settings or {})}).result


def sample(model: Any, clip: Any, prompt: str = PROMPT, cfg: float = 4.0, steps: int = 6, size: int = 128) -> Any:
    import nodes

    with torch.inference_mode():
        positive = nodes.CLIPTextEncode().encode(clip, prompt)[0]
        negative = nodes.CLIPTextEncode().encode(clip, "")[0]
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
