"""ScalingConcept in the real host: a picture comes back, or goes without its concept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.errors import GuardError

PROMPTS = (
    "a large red ball, flat style, on paper",
    "a medium blue ball, flat style, on paper",
    "a small green ball, flat style, on paper",
    "a large pink ball, flat style, on paper",
)
OTHER = "a large red tree, flat style, on paper"
BALL = ConceptList(lists=("demo-world",)).with_concept(Concept("ball", "box"))
BACK = {"omega": 1.0, "gamma": 0.0, "leave": 1.0}


def sample(
    model: Any, clip: Any, prompts: tuple[str, ...] = PROMPTS, cfg: float = 4.0, sampler: str = "ddim", steps: int = 10,
    size: int = 128, seed: int = 3,
) -> Any:  # fmt: skip
    from lethe.nodes.host.sampling import encode_prompt, prompts_at_once

    import nodes

    with torch.inference_mode():
        positive, negative = prompts_at_once([encode_prompt(clip, p) for p in prompts]), encode_prompt(clip, "")
        latent = nodes.EmptyLatentImage().generate(size, size, len(prompts))[0]
        found = nodes.KSampler().sample(model, seed, steps, cfg, sampler, "normal", positive, negative, latent)
        return found[0]["samples"]


@pytest.fixture(scope="module")
def given(demo: Any) -> Any:
    """Pictures of balls, `[4, 128, 128, 3]`."""
    with torch.inference_mode():
        return demo[2].decode(sample(*demo[:2], seed=8))


def encoded(demo: Any, pictures: Any) -> Any:
    with torch.inference_mode():
        return demo[2].encode(pictures)


def scaling(demo: Any, given: Any, gate: float = 0.0, **settings: Any) -> Any:
    """MODEL and CLIP behind the guard."""
    from lethe.nodes.guard import LetheGuard

    chosen = {"guard": "scaling", **settings}
    with torch.inference_mode():
        return LetheGuard.execute(demo[0], demo[1], BALL, gate, guard=chosen, images=given, vae=demo[2]).result[:2]


@pytest.mark.parametrize(("cfg", "sampler"), [(4.0, "ddim"), (1.0, "euler")])
def test_at_scale_one_the_picture_comes_back_whatever_is_asked_for(
    demo: Any, given: Any, cfg: float, sampler: str
) -> None:
    latents = encoded(demo, given)
    drawn = sample(*scaling(demo, given, **BACK), (OTHER,) * 4, cfg, sampler)
    assert torch.allclose(drawn, latents, atol=1e-3)


def test_below_it_the_concept_goes_and_the_rest_stays(demo: Any, given: Any) -> None:
    from lethe.erasers.demo.world import judge

    with torch.inference_mode():
        drawn = demo[2].decode(sample(*scaling(demo, given)))
    before, after = (judge().seen(x[..., :3].movedim(-1, 1).float()) for x in (given, drawn))
    assert sum("ball" in seen for seen in before) == 4 and sum("ball" in seen for seen in after) <= 2
    assert sum("paper" in seen for seen in after) >= 2


def test_behind_its_gate_and_without_it_nothing_changes(demo: Any, given: Any) -> None:
    before = {key: value.clone() for key, value in demo[0].model.state_dict().items()}
    plain = sample(*demo[:2], (OTHER,), steps=3)
    calls: list[int] = []
    model, clip = scaling(demo, given, 0.45)
    model.set_model_unet_function_wrapper(
        lambda apply, at: calls.append(1) or apply(at["input"], at["timestep"], **at["c"])
    )
    assert torch.equal(sample(model, clip, (OTHER,), steps=3), plain) and len(calls) == 3
    after = demo[0].model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_in_a_batch_only_the_prompts_that_pass_the_gate_draw_the_picture(demo: Any, given: Any) -> None:
    prompts = (OTHER, PROMPTS[0])
    plain, drawn = sample(*demo[:2], prompts), sample(*scaling(demo, given[:1], 0.45, **BACK), prompts)
    assert torch.allclose(plain[0], drawn[0], atol=1e-3)
    assert torch.allclose(drawn[1], encoded(demo, given[:1])[0], atol=1e-3)


def test_what_does_not_fit_is_refused(demo: Any, given: Any) -> None:
    pair = scaling(demo, given[:1], rounds=1)
    with pytest.raises(GuardError, match="128 x 128"):
        sample(*pair, PROMPTS[:1], size=64)
    with pytest.raises(GuardError, match="between its steps"):
        sample(*pair, PROMPTS[:1], sampler="dpm_2", steps=3)
    with pytest.raises(GuardError, match="Two guards"):
        sample(*scaling((*pair, demo[2]), given[:1]), PROMPTS[:1], steps=2)
